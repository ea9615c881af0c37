"""Shards, pictures, pose tables and batches: what flows from one stage to the next.

In reading order:

    records.py        a sample's record: the raw dataset's labels of a picture
    crops.py          which part of a picture is the face: crop rules, and what a network gets to see
    face_sizes.py     how large faces are in their pictures, compared between two datasets
    image_files.py    the pictures in a folder, and everything else in it by kind
    images.py         pictures as bytes and as arrays: hostile files, one crop, encoding
    arrays.py         arrays of foreign ``.npz`` files
    shards.py         the whole shard format: members of a tar, fields of the JSON and of the manifest; written
    shard_reader.py   the one way to open a shard: where each sample lies, its picture and its record
    index.py          the index of shards: where each sample lies, and its labels, in one Arrow file
    faces.py          faces of an open shard, decoded and cropped
    store.py          what a URL names, copied to a file: tries, a limit, a word to who waits
    remote_cache.py   those copies, once per node, in a bounded folder
    shard_files.py    shards that a user names: folders here or in a store, and local tars
    prefetch.py       work done by threads ahead of its consumer
    pose_tables.py    pose tables as the pass writes them
    pose_labels.py    pose tables as labels: the one reader that checks that they belong to their shards
    tables.py         ``hpe.tables``: labels, index and pose tables as one datasets.Dataset
    directions.py     a direction from angles: the thesis' rule, ours, Pointing'04's
    batch.py          the training batch
    recipe.py         how a stored picture is made of a raw one
    normalise.py      pixels as a network takes them
    decode.py         a sample's bytes straight into a row of a batch, on the CPU
    gpu_decode.py     the same on the training device
    detect.py         finding faces where a dataset has no boxes
    annotate.py       predictions drawn on a picture
    video.py          videos and cameras: upright frames with their times, and annotated videos
    tracks.py         which face of a frame is which face of the frames before
    smoothing.py      angles and probabilities of one face, smoothed over time
    provenance.py     which version produced a result, from which data
"""

"use strict";
const by = (id) => document.getElementById(id);
const SVG = "http://www.w3.org/2000/svg";
const ARROWS = {forward: "●", left: "◀", right: "▶", up: "▲", down: "▼"};
const CAMERA_WIDTH = 640;
const megabytes = (bytes) => (bytes / 1e6).toFixed(bytes < 1e7 ? 1 : 0);
let asked = 0, watched = 0;  // answers to older questions are not shown
let stream = null, told = ["", false];

by("name").textContent = ABOUT.name;
by("about").textContent = `reads ${ABOUT.heads.join(", ")}; ` +
  (ABOUT.given ? "each picture is one cropped face" : `faces found by ${ABOUT.finder}`);
by("video-limit").textContent = ABOUT.video || `At most ${megabytes(ABOUT.most)} MB. It stays on this machine.`;
by("video-file").disabled = Boolean(ABOUT.video);

function say(text, bad = false) {
  by("message").textContent = text;
  by("message").classList.toggle("bad", bad);
}

// A video goes on while another tab is shown.
function tell(text, bad = false) {
  told = [text, bad];
  if (!by("video").hidden) say(text, bad);
}

async function ask(path, body) {
  const answer = await fetch(path, {method: "POST", body});
  const value = await answer.json();
  if (!answer.ok) throw new Error(value.error || answer.statusText);
  return value;
}

function element(tag, text = "", name = "") {
  const made = document.createElement(tag);
  made.textContent = text;
  if (name) made.className = name;
  return made;
}

// A bar as SVG: the page's policy allows no style attributes.
function bar(share, colour) {
  const track = element("i"), svg = document.createElementNS(SVG, "svg"), rect = document.createElementNS(SVG, "rect");
  rect.setAttribute("width", `${Math.max(100 * share, 1.5)}%`);
  rect.setAttribute("height", "9");
  rect.setAttribute("rx", "4.5");
  rect.setAttribute("fill", colour);
  svg.append(rect);
  track.append(svg);
  return track;
}

function card(face, number) {
  const made = element("section", "", "card"), head = element("h2", `Face ${title(face, number)}`);
  if (face.direction) head.append(element("span", `${ARROWS[face.direction]} ${face.direction}`));
  made.append(head);
  const pairs = [];
  if (face.angles) ["yaw", "pitch", "roll"].forEach((angle, at) => pairs.push([angle, `${signed(face.angles[at], 0)}°`]));
  if (face.affect) ["valence", "arousal"].forEach((one, at) => pairs.push([one, signed(face.affect[at], 2)]));
  if (pairs.length) {
    const list = element("dl");
    for (const [term, value] of pairs) {
      const pair = element("div");
      pair.append(element("dt", term), element("dd", value));
      list.append(pair);
    }
    made.append(list);
  }
  for (const [emotion, colour] of Object.entries(face.probabilities ? ABOUT.emotions : {})) {
    const share = face.probabilities[emotion];
    const row = element("div", "", emotion === face.emotion ? "bar best" : "bar");
    row.append(element("span", emotion), bar(share, colour), element("b", `${Math.round(100 * share)} %`));
    made.append(row);
  }
  return made;
}

const title = (face, number) => face.track === null ? number + 1 : `#${face.track}`;
const signed = (value, digits) => `${value < 0 ? "−" : "+"}${Math.abs(value).toFixed(digits)}`;

function show(image, answer) {
  const canvas = by("picture"), pen = canvas.getContext("2d");
  canvas.hidden = false;
  canvas.width = image.naturalWidth || image.videoWidth || image.width;
  canvas.height = image.naturalHeight || image.videoHeight || image.height;
  pen.drawImage(image, 0, 0, canvas.width, canvas.height);
  const scale = canvas.width / answer.width;
  answer.faces.forEach((face, number) => mark(pen, face, number, scale, canvas));
  by("faces").replaceChildren(...answer.faces.map(card));
}

function mark(pen, face, number, scale, canvas) {
  const [x0, y0, x1, y1] = face.box.map((side) => side * scale), side = Math.max(x1 - x0, y1 - y0);
  const whole = x0 <= 0 && y0 <= 0 && x1 >= canvas.width && y1 >= canvas.height;
  const thin = Math.max(side / 110, 1.5);
  pen.lineCap = pen.lineJoin = "round";
  if (!whole) {
    pen.strokeStyle = ABOUT.directions[face.direction] || "#fff";
    pen.lineWidth = thin;
    pen.strokeRect(x0, y0, x1 - x0, y1 - y0);
    const size = Math.min(Math.max(side / 9, 13), 40), label = `${title(face, number)}`;
    pen.font = `600 ${size}px system-ui, sans-serif`;
    const width = pen.measureText(label).width + size * 0.7, top = Math.max(y0 - size * 1.45, 0);
    pen.fillStyle = "rgba(18, 20, 24, 0.8)";
    pen.fillRect(x0, top, width, size * 1.35);
    pen.fillStyle = "#fff";
    pen.textBaseline = "middle";
    pen.fillText(label, x0 + size * 0.35, top + size * 0.7);
  }
  if (!face.axes) return;
  const middle = [(x0 + x1) / 2, (y0 + y1) / 2];
  face.axes.forEach((end, axis) => {
    for (const [colour, width] of [["rgba(0, 0, 0, 0.45)", thin * 4.2], [ABOUT.axes[axis], thin * 2.6]]) {
      pen.strokeStyle = colour;
      pen.lineWidth = width;
      pen.beginPath();
      pen.moveTo(...middle);
      pen.lineTo(end[0] * scale, end[1] * scale);
      pen.stroke();
    }
  });
}

function forget() {
  by("picture").hidden = true;
  by("faces").replaceChildren();
}

async function photo(file) {
  const mine = ++asked;
  forget();
  say(`Reading ${file.name || "the picture"} …`);
  try {
    const answer = await ask("/photo", file);
    const image = new Image();
    image.src = answer.picture;
    await image.decode();
    if (mine !== asked) return;
    show(image, answer);
    const count = answer.faces.length;
    say(answer.problem || `${count} face${count === 1 ? "" : "s"}`);
  } catch (error) {
    if (mine === asked) say(error.message, true);
  }
}

async function camera() {
  if (stream) return stopCamera();
  try {
    stream = await navigator.mediaDevices.getUserMedia({video: {width: {ideal: CAMERA_WIDTH}}, audio: false});
  } catch (error) {
    return say(`The camera cannot be used: ${error.message}`, true);
  }
  by("camera-button").textContent = "Stop the camera";
  const mine = ++asked, seen = document.createElement("video"), still = document.createElement("canvas");
  seen.muted = seen.playsInline = true;
  seen.srcObject = stream;
  await seen.play();
  let rate = 0, last = performance.now();
  while (stream && mine === asked) {
    still.width = Math.min(seen.videoWidth, CAMERA_WIDTH);
    still.height = Math.round(seen.videoHeight * still.width / seen.videoWidth);
    still.getContext("2d").drawImage(seen, 0, 0, still.width, still.height);
    try {
      const frame = await new Promise((done) => still.toBlob(done, "image/jpeg", 0.9));
      const answer = await ask(`/frame?${(performance.now() / 1000).toFixed(4)}`, frame);
      if (!stream || mine !== asked) return;
      show(still, answer);
      const now = performance.now();
      rate = rate ? 0.8 * rate + 200 / (now - last) : 1000 / (now - last);
      last = now;
      say(`${rate.toFixed(1)} frames/s${answer.problem ? `: ${answer.problem}` : ""}`);
    } catch (error) {
      say(error.message, true);
      return stopCamera();
    }
  }
}

function stopCamera() {
  for (const track of stream ? stream.getTracks() : []) track.stop();
  stream = null;
  by("camera-button").textContent = "Start the camera";
}

async function video(file) {
  const mine = ++watched, player = by("player"), bar = by("video-progress");
  forget();
  player.hidden = by("results").hidden = true;
  if (file.size > ABOUT.most) {
    const found = `${megabytes(file.size)} MB, more than the ${megabytes(ABOUT.most)} MB allowed (--max-megabytes)`;
    return tell(found, true);
  }
  bar.hidden = false;
  bar.removeAttribute("value");
  tell(`Sending ${file.name} …`);
  try {
    await ask("/video", file);
    const start = performance.now();
    for (;;) {
      await new Promise((done) => setTimeout(done, 300));
      const job = await (await fetch("/video")).json();
      if (mine !== watched) return;
      if (job.error) throw new Error(job.error);
      if (job.of) [bar.max, bar.value] = [job.of, job.frames];
      const rate = job.frames / (performance.now() - start) * 1000;
      const left = job.of && rate ? `, ${Math.ceil((job.of - job.frames) / rate)} s left` : "";
      tell(`${job.frames}${job.of ? ` of ${job.of}` : ""} frames, ${rate.toFixed(1)}/s${left}`);
      if (!job.done) continue;
      const made = await (await fetch("/video.mp4")).blob();
      URL.revokeObjectURL(player.src);
      player.src = by("save-video").href = URL.createObjectURL(made);
      player.hidden = by("results").hidden = false;
      const problems = job.problems.length ? `; ${job.problems.join("; ")}` : "";
      const tracks = `${job.tracks} face${job.tracks === 1 ? "" : "s"} followed`;
      tell(`${job.frames} frames, ${job.with_face} with a face, ${tracks}${problems}`, Boolean(problems));
      player.play().catch(() => {});
      break;
    }
  } catch (error) {
    if (mine === watched) tell(error.message, true);
  } finally {
    if (mine === watched) bar.hidden = true;
  }
}

function choose(tab) {
  stopCamera();
  asked += 1;
  for (const one of document.querySelectorAll("[role=tab]")) {
    one.setAttribute("aria-selected", String(one === tab));
    by(one.getAttribute("aria-controls")).hidden = one !== tab;
  }
  forget();
  say(...(by("video").hidden ? [""] : told));
}

for (const tab of document.querySelectorAll("[role=tab]")) tab.addEventListener("click", () => choose(tab));
by("camera-button").addEventListener("click", camera);
for (const [id, read] of [["photo", photo], ["video", video]]) {
  const input = by(`${id}-file`), area = input.parentElement;
  input.addEventListener("change", () => { if (input.files.length) read(input.files[0]); input.value = ""; });
  area.addEventListener("dragover", (event) => { event.preventDefault(); area.classList.add("over"); });
  area.addEventListener("dragleave", () => area.classList.remove("over"));
  area.addEventListener("drop", (event) => {
    event.preventDefault();
    area.classList.remove("over");
    if (event.dataTransfer.files.length && !input.disabled) read(event.dataTransfer.files[0]);
  });
}
document.addEventListener("paste", (event) => {
  const file = [...event.clipboardData.files].find((one) => one.type.startsWith("image/"));
  if (file && !by("photo").hidden) photo(file);
});

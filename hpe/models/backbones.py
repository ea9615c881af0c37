"""Backbones by name: a picture in, a feature vector out.

Names are torchvision's (``resnet18``, ``mobilenet_v3_small``, ``googlenet``, ``vgg16``, ``alexnet`` …), timm's
behind ``timm/``, ``tiny`` and ``resnet14`` for small pictures and CPUs, and ``angles`` for the thesis' direction
network, whose input is the three angles instead of a picture.
"""

import difflib
import warnings
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from hpe.core.errors import UserError
from hpe.core.nearest import did_you_mean

TIMM: Final = "timm/"
INCEPTIONS: Final = ("googlenet", "inception_v3")
_OFFLINE: Final = "give a local file with --set model.weights=FILE, or start without: --set model.weights=none"
_AUXILIARY: Final = ("aux1", "aux2", "AuxLogits")


class Tiny(nn.Module):
    """A ResNet of three blocks and 0.7 million parameters for pictures of 48 to 128 pixels."""

    def __init__(self, widths: tuple[int, ...] = (24, 48, 96, 192)) -> None:
        super().__init__()
        stem = [
            nn.Conv2d(3, widths[0], 5, 2, 2, bias=False),
            nn.BatchNorm2d(widths[0]),
            nn.ReLU(inplace=True),
        ]
        self.stem = nn.Sequential(*stem)
        self.blocks = nn.Sequential(*(_Block(a, b) for a, b in pairwise(widths)))
        self.features = widths[-1]

    def forward(self, images: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch features"]:
        return self.blocks(self.stem(images)).mean((-2, -1))


class _Block(nn.Module):
    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(inputs, outputs, 3, 2, 1, bias=False)
        self.first_norm = nn.BatchNorm2d(outputs)
        self.second = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.second_norm = nn.BatchNorm2d(outputs)
        self.shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, 2, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, images: Tensor) -> Tensor:
        inner = torch.relu(self.first_norm(self.first(images)))
        return torch.relu(self.second_norm(self.second(inner)) + self.shortcut(images))


class ResNet14(nn.Module):
    """Thirteen layers and a head, 3.4 million parameters, for pictures of 40 to 96 pixels.

    The stages of ResNet-18 without the last one, in the plain blocks of David Page's network of DAWNBench ("How to
    train your ResNet", 2018). On pictures of 48 pixels ResNet-18's last stage has maps of 3 × 3, where convolutions of
    oneDNN reach a sixth of their speed: it takes half of the time of a training step on a CPU.
    """

    features = 256

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.Sequential(
            _Convolution(3, 64, 2),
            _Residual(64),
            _Convolution(64, 128, 2),
            _Residual(128),
            _Residual(128),
            _Convolution(128, 256, 2),
            _Residual(256),
            _Residual(256),
        )

    def forward(self, images: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch features"]:
        return self.blocks(images).mean((-2, -1))


class _Convolution(nn.Sequential):
    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        convolution = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        super().__init__(convolution, nn.BatchNorm2d(outputs), nn.ReLU(inplace=True))


class _Residual(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.inner = nn.Sequential(_Convolution(channels, channels), _Convolution(channels, channels))

    def forward(self, images: Tensor) -> Tensor:
        return images + self.inner(images)


class AngleFeatures(nn.Module):
    """The trunk of the thesis' direction network on yaw, pitch, roll: 3 → 512 → 128 → 64.

    The thesis scaled its training angles and AffectNet's with two different scalers. Here the scale (minimum
    and maximum of the training angles, to 0..1) is a buffer, kept with the weights that were trained on it.
    """

    features = 64
    minimum: Tensor
    maximum: Tensor

    def __init__(self, dropout: float = 0.2) -> None:
        super().__init__()
        self.register_buffer("minimum", torch.full((3,), -99.0))
        self.register_buffer("maximum", torch.full((3,), 99.0))
        widths = (3, 512, 128, self.features)
        layers: list[nn.Module] = []
        for inputs, outputs in pairwise(widths):
            layers += [nn.Linear(inputs, outputs), nn.BatchNorm1d(outputs), nn.ReLU(inplace=True)]
            layers += [nn.Dropout(dropout)]
        self.layers = nn.Sequential(*layers)

    def fit_scale(self, angles: Float[Tensor, "rows 3"]) -> None:
        """Take minimum and maximum from the training angles."""
        self.minimum.copy_(angles.amin(0))
        self.maximum.copy_(angles.amax(0))

    def forward(self, angles: Float[Tensor, "batch 3"]) -> Float[Tensor, "batch features"]:
        scale = (self.maximum - self.minimum).clamp(min=1e-6)
        return self.layers((angles - self.minimum) / scale)


def build_backbone(name: str, *, stem: str = "standard", weights: str = "none") -> tuple[nn.Module, int]:
    """A backbone and the number of its features.

    Args:
        name: see this module.
        stem: for pictures of about 32 to 64 pixels, ``small`` replaces a ResNet's first convolution and pool by
            one 3×3 convolution of stride 1, ``half`` by one of stride 2, at a quarter of the work.
        weights: ``none``; ``hub`` for the pretrained weights of torchvision or timm; or a local file, see
            :func:`load_weights`.

    Raises:
        UserError: an unknown name, a stem that does not fit, or weights that do not fit.
    """
    if name == "tiny":
        backbone: nn.Module = Tiny()
        features = Tiny().features
    elif name == "resnet14":
        backbone = ResNet14()
        features = backbone.features
    elif name == "angles":
        backbone = AngleFeatures()
        features = backbone.features
    elif name.startswith(TIMM):
        backbone, features = _timm(name.removeprefix(TIMM), pretrained=weights == "hub")
    else:
        backbone, features = _torchvision(name, pretrained=weights == "hub")
    if stem != "standard":
        _short_stem(backbone, name, stem)
    if weights not in ("none", "hub"):
        load_weights(backbone, Path(weights))
    return backbone, features


def outline(name: str, *, stem: str = "standard") -> tuple[nn.Module, int]:
    """As :func:`build_backbone`, without numbers: on the ``meta`` device, where it takes no memory and little time."""
    try:
        with torch.device("meta"):
            return build_backbone(name, stem=stem)
    except NotImplementedError:  # torchvision computes the widths of its RegNets with tensors
        with _OnlyEmptyOnes():
            backbone, features = build_backbone(name, stem=stem)
        return backbone.to("meta"), features


class _OnlyEmptyOnes(TorchFunctionMode):
    """Makes tensors without values, as layers make their weights, on the ``meta`` device, and no others."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None) -> Any:
        kwargs = dict(kwargs or {})
        if func is torch.empty:
            kwargs["device"] = kwargs.get("device") or "meta"
        return func(*args, **kwargs)


def _torchvision(name: str, *, pretrained: bool) -> tuple[nn.Module, int]:
    import torchvision  # seconds of import that the other backbones need not pay

    known = torchvision.models.list_models(module=torchvision.models)
    if name not in known:
        close = difflib.get_close_matches(name, [*known, "tiny", "resnet14", "angles"], 3)
        raise UserError(
            f"model.backbone: unknown backbone {name!r}; "
            + (f"did you mean {' or '.join(close)}? " if close else "")
            + "Use a name of torchvision.models, timm/<name of timm>, tiny or resnet14"
        )
    # With weights torchvision sets these itself, and refuses others.
    options = {"aux_logits": False, "init_weights": True} if name in INCEPTIONS and not pretrained else {}
    try:
        network = torchvision.models.get_model(name, weights="DEFAULT" if pretrained else None, **options)
    except OSError as error:
        raise UserError(f"model.weights: cannot download {name}'s weights ({error}); {_OFFLINE}") from error
    if name in INCEPTIONS:
        _without_extras(network)
    last = [(path, layer) for path, layer in network.named_modules() if isinstance(layer, nn.Linear)]
    if not last:
        raise UserError(f"model.backbone: {name} has no linear classifier to replace; choose another")
    path, layer = last[-1]
    network.set_submodule(path, nn.Identity())
    return network, layer.in_features


def _without_extras(network: nn.Module) -> None:
    """Make an Inception of the hub what it is without weights.

    Its auxiliary classifiers would get no gradient (DDP stops then), and their names would not be found again by
    ``hpe evaluate``. Its own change of the input is part of :func:`hpe.models.normalisation.published_normalisation`.
    """
    for classifier in _AUXILIARY:
        if hasattr(network, classifier):
            setattr(network, classifier, None)
    for switch in ("aux_logits", "transform_input"):
        setattr(network, switch, False)


def synchronised(backbone: nn.Module) -> nn.Module:
    """The backbone with batch norms that count over all ranks.

    By timm's converter, which does as torch's and keeps the activation inside timm's norms: torch's drops it, and
    ``hpe evaluate`` would rebuild another network.
    """
    from timm.layers import convert_sync_batchnorm  # pyright: ignore[reportPrivateImportUsage]

    return convert_sync_batchnorm(backbone)


def _timm(name: str, *, pretrained: bool) -> tuple[nn.Module, int]:
    import timm

    if not timm.is_model(name):
        close = difflib.get_close_matches(name.split(".")[0], timm.list_models(), 3)
        raise UserError(
            f"model.backbone: timm has no model {name!r}"
            + (f"; did you mean {' or '.join(TIMM + c for c in close)}?" if close else "")
        )
    try:
        network = timm.create_model(name, pretrained=pretrained, num_classes=0)
    except Exception as error:
        if "Invalid pretrained tag" in str(error):
            architecture, _, tag = name.partition(".")
            raise UserError(
                f"model.backbone: timm has no weights {tag!r} for {architecture}; {TIMM}{architecture} has its default"
            ) from error
        if not pretrained:
            raise
        raise UserError(f"model.weights: cannot download timm's weights of {name} ({error}); {_OFFLINE}") from error
    return network, int(getattr(network, "head_hidden_size", 0) or network.num_features)  # pyright: ignore[reportArgumentType]


def _short_stem(backbone: nn.Module, name: str, stem: str) -> None:
    first, pool = getattr(backbone, "conv1", None), getattr(backbone, "maxpool", None)
    if not isinstance(first, nn.Conv2d) or pool is None:
        raise UserError(
            f"model.stem: {stem} is for torchvision's ResNets (resnet18, resnet34, resnet50 …), and {name} is none of "
            "them; use standard"
        )
    backbone.conv1 = nn.Conv2d(3, first.out_channels, 3, 2 if stem == "half" else 1, 1, bias=first.bias is not None)
    nn.init.kaiming_normal_(backbone.conv1.weight, mode="fan_out", nonlinearity="relu")
    backbone.maxpool = nn.Identity()


def read_state(path: Path) -> dict[str, Tensor]:
    """The tensors of a weights file (safetensors, or a torch state dict that holds nothing but tensors).

    ``module.`` prefixes and a ``state_dict`` or ``model`` level around the tensors are tolerated.

    Raises:
        UserError: no such file, or a file that holds more than tensors (it is not executed).
    """
    if not path.is_file():
        raise UserError(f"{path}: no such weights file, or run folder{did_you_mean(path)}")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            state = load_file(path)
        else:
            with warnings.catch_warnings(action="ignore", category=UserWarning):  # of pickle protocols
                state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch's and safetensors' have no common base, and speak to programmers
        raise UserError(
            f"{path}: not a file of tensors alone, or damaged; expected safetensors or a torch state dict (a file that "
            "needs other objects unpickled is never loaded)"
        ) from error
    for level in ("state_dict", "model", "model_state_dict"):
        if isinstance(state, dict) and isinstance(state.get(level), dict):
            state = state[level]
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise UserError(f"{path}: expected a state dict (names to tensors), found {type(state).__name__}")
    return {str(key).removeprefix("module."): value for key, value in state.items()}


def load_weights(network: nn.Module, path: Path) -> None:
    """Load a backbone's weights from a local file; classifier layers of the file are left out.

    A checkpoint of this package fits too (its backbone is taken).

    Raises:
        UserError: names or shapes that do not fit, named.
    """
    state = read_state(path)
    if any(key.startswith("backbone.") for key in state):
        state = {k.removeprefix("backbone."): v for k, v in state.items() if k.startswith("backbone.")}
    own = network.state_dict()
    missing = [key for key in own if key not in state and not key.endswith("num_batches_tracked")]
    wrong = [
        f"{key} is {tuple(state[key].shape)}, expected {tuple(value.shape)}"
        for key, value in own.items()
        if key in state and state[key].shape != value.shape
    ]
    # A deeper network of the same family holds all of ours, and more: that is not ours cut short.
    parts = {key.partition(".")[0] for key in own}
    left_out = tuple(f"{name}." for name, layer in network.named_modules() if isinstance(layer, nn.Identity))
    strange = [
        key for key in state if key not in own and key.partition(".")[0] in parts and not key.startswith(left_out)
    ]
    if missing or wrong or strange:
        raise UserError(
            f"{path}: weights do not fit the backbone: {len(missing)} tensors are missing"
            + (f" (first {missing[0]})" if missing else "")
            + (f"; {len(strange)} are strange to it (first {strange[0]})" if strange else "")
            + (f"; {len(wrong)} have another shape ({wrong[0]})" if wrong else "")
            + f"; the file holds {len(state)} tensors"
            + (f" such as {next(iter(state))}" if state else "")
        )
    network.load_state_dict({key: state[key] for key in own if key in state}, strict=False)

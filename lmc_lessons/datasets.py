"""Data sets in memory: embedded ones that need no network, and the real ones from disk.

``load(name)`` returns a :class:`Dataset`: inputs as float32 in [0, 1], labels as int64, one fixed
split, class names, and a hash of what was loaded. A published file has its checksum verified before
its content is parsed, and whatever is wrong is one :class:`DataError` that says what was found and
what to do. ``data/README.md`` has a card for each data set.

``python -m lmc_lessons.datasets NAME`` downloads one of the real data sets.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import io
import math
import os
import shlex
import sys
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

if TYPE_CHECKING:
    from PIL import ImageFont

LARGEST_SEED = 2**31 - 1
TEN_DIGITS = tuple("0123456789")


class DataError(ValueError):
    """Data that cannot be loaded: one line with what was given and what is allowed or what to do.

    Taught in: book/connectivity/weight-matching
    """


class MissingDataError(DataError):
    """Files or a folder that are not there, as opposed to there and wrong.

    Taught in: book/connectivity/weight-matching
    """


@dataclass(frozen=True, eq=False, repr=False)
class Dataset:
    """A classification data set in memory, already split.

    Attributes:
        name: The name it was loaded by (a folder keeps only its last part, never a full path).
        variant: Which edition this is: source, split seed, options, subset.
        train_x: Inputs, float32 in [0, 1]: (N, C, H, W) for images, (N, D) for tables.
        train_y: Labels, int64, shape (N,), in 0 .. classes - 1.
        test_x: Inputs of the test split, same shape after the first axis.
        test_y: Labels of the test split.
        class_names: One name per class, in label order.

    Raises:
        DataError: an empty split, shapes or types that do not fit, labels out of range.

    Taught in: book/connectivity/weight-matching
    """

    name: str
    variant: str
    train_x: Tensor
    train_y: Tensor
    test_x: Tensor
    test_y: Tensor
    class_names: tuple[str, ...]

    def __post_init__(self) -> None:
        for split, x, y in (
            ("train", self.train_x, self.train_y),
            ("test", self.test_x, self.test_y),
        ):
            _check_split(f"{self.name} ({split})", x, y, len(self.class_names))
        if self.train_x.shape[1:] != self.test_x.shape[1:]:
            raise DataError(
                f"{self.name}: train inputs have shape {_by(self.train_x.shape[1:])}, "
                f"test inputs {_by(self.test_x.shape[1:])}; they must agree"
            )

    @property
    def classes(self) -> int:
        """Number of classes."""
        return len(self.class_names)

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one input: (C, H, W) for images, (D,) for tables."""
        return tuple(self.train_x.shape[1:])

    @cached_property
    def sha256(self) -> str:
        """SHA-256 (hex) over the bytes of train_x, train_y, test_x and test_y, in this order."""
        digest = hashlib.sha256()
        for tensor in (self.train_x, self.train_y, self.test_x, self.test_y):
            digest.update(np.ascontiguousarray(tensor.cpu().numpy()).data)
        return digest.hexdigest()

    def subset(self, train: int, test: int | None = None, *, seed: int = 0) -> Dataset:
        """Return a random subset, fixed by the seed and not stratified.

        The subsets of one seed are nested: the first 100 of ``subset(200)`` are ``subset(100)``.

        Args:
            train: Number of training samples to keep, 1 .. N.
            test: Number of test samples to keep; by default ``train``, or all if there are fewer.
            seed: Fixes which samples are kept, and their order.

        Returns:
            The subset, with copied tensors.

        Raises:
            DataError: a number below 1 or larger than what is available.

        Taught in: book/connectivity/weight-matching
        """
        available = len(self.train_x), len(self.test_x)
        train = _whole_number(f"limit for {self.name}", train, 1, available[0])
        if test is None:
            test = min(train, available[1])
        test = _whole_number(f"test limit for {self.name}", test, 1, available[1])
        generator = torch.Generator().manual_seed(_check_seed(seed))
        kept_train = torch.randperm(available[0], generator=generator)[:train]
        kept_test = torch.randperm(available[1], generator=generator)[:test]
        return Dataset(
            self.name,
            f"{self.variant}, subset {train} + {test} by seed {seed}",
            self.train_x[kept_train],
            self.train_y[kept_train],
            self.test_x[kept_test],
            self.test_y[kept_test],
            self.class_names,
        )

    def __repr__(self) -> str:
        return (
            f"Dataset({self.name}; {self.variant}; {len(self.train_x):,} train + "
            f"{len(self.test_x):,} test, input {_by(self.input_shape)}, {self.classes} classes)"
        )


def names() -> tuple[str, ...]:
    """Return the names that ``load`` knows; ``folder:PATH`` comes on top.

    Taught in: book/connectivity/weight-matching
    """
    return (*_EMBEDDED, *_PUBLISHED)


def load(
    name: str,
    *,
    limit: int | None = None,
    seed: int = 0,
    root: str | Path | None = None,
    **options: Any,
) -> Dataset:
    """Load a data set into memory.

    Args:
        name: One of ``names()``, or ``folder:PATH`` for a folder of images: either
            ``PATH/train/CLASS/*`` with ``PATH/test/CLASS/*``, or ``PATH/CLASS/*``, of which a fifth
            of each class becomes the test split. All images have one size; grey ones are promoted
            if any is in colour; transparency is dropped.
        limit: Keep this many training samples, and as many test samples (all if there are fewer):
            a random subset fixed by ``seed``, not stratified. See :meth:`Dataset.subset`.
        seed: Fixes the split of ``digits``, ``breast-cancer`` and folders without one, the drawing
            of ``glyphs``, ``moons`` and ``sine``, and the subset of ``limit``.
        root: Where published files lie; by default ``$LMC_LESSONS_DATA``, else ``data/cache``.
            Ignored by the others.
        **options: For ``glyphs``: ``size`` (pixels, default 16), ``count`` (training images,
            default 2000; a quarter as many test images), ``characters`` (distinct, one class each,
            default the ten digits), ``distortion`` (0.1 to 4, default 1). For ``moons`` and
            ``sine``: ``count`` (default 400), ``noise`` (standard deviation, default 0.1 and 0).
            For folders: ``size`` (resize to size x size pixels).

    Returns:
        The data set; inputs float32 in [0, 1], labels int64.

    Raises:
        MissingDataError: files or a folder that are not there.
        DataError: unknown name or option, a value out of its range, damaged files.

    Taught in: book/connectivity/weight-matching
    """
    _check_seed(seed)
    builder, allowed = _builder(name, root)
    for option in options:
        if option not in allowed:
            known = f"allowed: {', '.join(allowed)}" if allowed else "it takes none"
            raise DataError(f"{_short(name)} has no option {option!r}; {known}")
    dataset = builder(seed=seed, **options)
    return dataset if limit is None else dataset.subset(limit, seed=seed)


def data_root(root: str | Path | None = None) -> Path:
    """Return the folder of the published data sets.

    Args:
        root: Given: that folder. None: ``$LMC_LESSONS_DATA`` if set, else ``data/cache`` of the
            repository that this package runs from, else ``data/cache`` of the working directory.

    Returns:
        The folder, which need not exist.

    Taught in: book/connectivity/weight-matching
    """
    chosen = root or os.environ.get("LMC_LESSONS_DATA")
    if chosen:
        return Path(chosen).expanduser()
    repository = Path(__file__).resolve().parents[1]
    base = repository if (repository / "pyproject.toml").is_file() else Path.cwd()
    return base / "data" / "cache"


def download(name: str, root: str | Path | None = None) -> Dataset:
    """Download a published data set through torchvision, unless it is there, and load it.

    Args:
        name: ``mnist``, ``fashion-mnist``, ``cifar10`` or ``svhn``.
        root: Where to put it; see :func:`data_root`.

    Returns:
        The data set, read back from disk with its checksums verified.

    Raises:
        DataError: another name, a failed download, or files that are there but damaged.

    Taught in: book/connectivity/weight-matching
    """
    if name not in _PUBLISHED:
        raise DataError(f"cannot download {name!r}; allowed: {', '.join(_PUBLISHED)}")
    try:
        return load(name, root=root)
    except MissingDataError:
        folder = data_root(root)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _PUBLISHED[name].fetch(folder)
    except (OSError, RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DataError(f"could not download {name} into {folder}: {reason}") from error
    return load(name, root=root)


# --- What every loader shares -----------------------------------------------------------------


def _by(shape: Sequence[int]) -> str:
    return "x".join(str(length) for length in shape)


def _check_split(what: str, x: Tensor, y: Tensor, classes: int) -> None:
    """Hold a split to what :class:`Dataset` promises."""
    if x.dtype != torch.float32 or y.dtype != torch.int64:
        raise DataError(f"{what}: got {x.dtype} inputs, {y.dtype} labels; need float32 and int64")
    if y.ndim != 1 or x.ndim < 2 or len(x) != len(y):
        raise DataError(f"{what}: inputs {_by(x.shape)} and labels {_by(y.shape)} do not match")
    if len(y) == 0:
        raise DataError(f"{what}: no samples")
    low, high = int(y.min()), int(y.max())
    if low < 0 or high >= classes:
        wrong = low if low < 0 else high
        raise DataError(f"{what}: label {wrong} is out of range; allowed: 0 to {classes - 1}")


def _whole_number(what: str, value: Any, low: int, high: int) -> int:
    is_whole = isinstance(value, (int, np.integer)) and not isinstance(value, bool)
    if not is_whole or not low <= value <= high:
        raise DataError(f"{what} must be a whole number from {low} to {high}; got {value!r}")
    return int(value)


def _real_number(what: str, value: Any, low: float, high: float) -> float:
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not is_number or not low <= value <= high:
        raise DataError(f"{what} must be a number from {low:g} to {high:g}; got {value!r}")
    return float(value)


def _check_seed(seed: Any) -> int:
    return _whole_number("seed", seed, 0, LARGEST_SEED)


def _test_count(train_count: int) -> int:
    """The generated data sets draw a quarter as many test samples, at least one."""
    return max(1, train_count // 4)


def _from_bytes(images: NDArray[np.uint8]) -> Tensor:
    """Turn grey levels 0 .. 255 into float32 in [0, 1]."""
    return torch.from_numpy(images.astype(np.float32)).div_(255)


def _stratified_split(
    labels: NDArray[np.int64], test_count: int, seed: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the indices of train and test, each class in its overall proportion."""
    from sklearn.model_selection import train_test_split

    train, test = train_test_split(
        np.arange(len(labels)), test_size=test_count, stratify=labels, random_state=seed
    )
    return train, test


def _scaled(
    train: NDArray[np.float64], test: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Map each column's range in train onto [0, 1]; test values beyond that range are clipped."""
    low = train.min(axis=0)
    span = train.max(axis=0) - low
    span[span == 0] = 1.0
    return (train - low) / span, ((test - low) / span).clip(0.0, 1.0)


def _table(
    name: str,
    variant: str,
    train: tuple[NDArray[Any], NDArray[Any]],
    test: tuple[NDArray[Any], NDArray[Any]],
    class_names: tuple[str, ...],
) -> Dataset:
    """A data set from (inputs, labels) arrays of rows of numbers, scaled to [0, 1]."""
    train_x, test_x = _scaled(train[0], test[0])
    return Dataset(
        name,
        variant,
        torch.from_numpy(train_x.astype(np.float32)),
        torch.from_numpy(train[1].astype(np.int64)),
        torch.from_numpy(test_x.astype(np.float32)),
        torch.from_numpy(test[1].astype(np.int64)),
        class_names,
    )


# --- Embedded: scikit-learn and two toys in the plane -----------------------------------------


def _digits(seed: int) -> Dataset:
    from sklearn.datasets import load_digits

    source = load_digits()
    labels = source.target.astype(np.int64)
    train, test = _stratified_split(labels, 450, seed)
    x = torch.from_numpy((source.images / 16).astype(np.float32))[:, None]  # (1797, 1, 8, 8)
    y = torch.from_numpy(labels)
    variant = f"scikit-learn, split by seed {seed}"
    return Dataset("digits", variant, x[train], y[train], x[test], y[test], TEN_DIGITS)


def _breast_cancer(seed: int) -> Dataset:
    from sklearn.datasets import load_breast_cancer

    source = load_breast_cancer()
    labels = source.target.astype(np.int64)
    train, test = _stratified_split(labels, 143, seed)
    return _table(
        "breast-cancer",
        f"scikit-learn, split by seed {seed}",
        (source.data[train], labels[train]),
        (source.data[test], labels[test]),
        tuple(str(name) for name in source.target_names),
    )


def _moons(seed: int, count: int = 400, noise: float = 0.1) -> Dataset:
    """Two interleaved half circles; noise is the standard deviation of each point's offset."""
    from sklearn.datasets import make_moons

    count, noise = _check_toy("moons", count, noise)
    train = make_moons(count, noise=noise, random_state=2 * seed)
    test = make_moons(_test_count(count), noise=noise, random_state=2 * seed + 1)
    return _table("moons", f"noise {noise:g}, seed {seed}", train, test, ("upper", "lower"))


def _sine(seed: int, count: int = 400, noise: float = 0.0) -> Dataset:
    """Points of the unit square, split by one period of a sine; noise blurs the labels near it."""
    count, noise = _check_toy("sine", count, noise)

    def draw(samples: int, stream: int) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        random = np.random.default_rng(stream)
        x = random.random((samples, 2))
        height = x[:, 1] - 0.5 - 0.25 * np.sin(2 * np.pi * x[:, 0])
        return x, (height + noise * random.standard_normal(samples) > 0).astype(np.int64)

    train, test = draw(count, 2 * seed), draw(_test_count(count), 2 * seed + 1)
    return _table("sine", f"noise {noise:g}, seed {seed}", train, test, ("below", "above"))


def _check_toy(name: str, count: Any, noise: Any) -> tuple[int, float]:
    count = _whole_number(f"count of {name}", count, 2, 10**7)
    return count, _real_number(f"noise of {name}", noise, 0, 10)


# --- Embedded: glyphs -------------------------------------------------------------------------

# Only text fonts. matplotlib also ships symbol fonts, and one with a box for every code point.
UNICODE_FONTS = (
    *(f"DejaVuSans{style}.ttf" for style in ("", "-Bold", "-Oblique", "-BoldOblique")),
    *(f"DejaVuSansMono{style}.ttf" for style in ("", "-Bold", "-Oblique", "-BoldOblique")),
    *(f"DejaVuSerif{style}.ttf" for style in ("", "-Bold", "-Italic", "-BoldItalic")),
    *(f"STIXGeneral{style}.ttf" for style in ("", "Bol", "Italic", "BolIta")),
)
# The TeX fonts hold other shapes than their code points say, except at ASCII letters and digits.
TEX_FONTS = ("cmb10.ttf", "cmr10.ttf", "cmss10.ttf", "cmti10.ttf", "cmtt10.ttf")
CANVAS, GLYPH_EXTENT = 64, 46  # pixels: the square a glyph is drawn on, and its larger side there
STROKE_WIDENINGS = (0, 1, 2)  # pixels added on each side of a stroke
GLYPHS_AT_ONCE = 1024  # bounds memory; part of the random stream, so changing it changes the images


def _glyphs(
    seed: int,
    size: int = 16,
    count: int = 2000,
    characters: str = "0123456789",
    distortion: float = 1.0,
) -> Dataset:
    """Characters in many fonts, each drawn with its own random distortion."""
    size = _whole_number("size of glyphs", size, 4, 256)
    count = _whole_number("count of glyphs", count, 1, 10**6)
    distortion = _real_number("distortion of glyphs", distortion, 0.1, 4)
    bank = _glyph_bank(_check_characters(characters))

    def draw(samples: int, stream: int) -> tuple[Tensor, Tensor, torch.Generator]:
        generator = torch.Generator().manual_seed(stream)
        labels = torch.arange(samples) % len(characters)
        labels = labels[torch.randperm(samples, generator=generator)]
        return _distorted(bank, labels, size, distortion, generator), labels, generator

    train_x, train_y, _ = draw(count, 2 * seed)
    test_x, test_y, generator = draw(_test_count(count), 2 * seed + 1)
    redraw = partial(_distorted, bank, size=size, distortion=distortion, generator=generator)
    _redraw_repeats(train_x, test_x, test_y, redraw)
    return Dataset(
        "glyphs",
        f"{characters}, {size} pixels, distortion {distortion:g}, seed {seed}",
        _from_bytes(train_x.numpy()),
        train_y,
        _from_bytes(test_x.numpy()),
        test_y,
        tuple(characters),
    )


def _check_characters(characters: Any) -> str:
    drawable = isinstance(characters, str) and all(
        character.isprintable() and not character.isspace() for character in characters
    )
    if not drawable or not characters or len(set(characters)) != len(characters):
        raise DataError(
            f"characters of glyphs must be distinct visible characters in one string; "
            f"got {characters!r}"
        )
    return str(characters)


def _fonts_with(characters: str) -> list[Path]:
    """The text fonts that hold every one of these characters, by their own character maps."""
    import matplotlib
    from matplotlib.ft2font import FT2Font

    folder = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    plain = characters.isascii() and characters.isalnum()
    candidates = [folder / name for name in UNICODE_FONTS + (TEX_FONTS if plain else ())]
    maps = {path: FT2Font(str(path)).get_charmap() for path in candidates if path.is_file()}
    needed = {ord(character) for character in characters}
    fonts = [path for path, known in maps.items() if needed <= known.keys()]
    if not fonts:
        raise DataError(
            f"characters of glyphs: no text font that ships with matplotlib has all of "
            f"{characters!r}"
        )
    return fonts


def _centred(font: ImageFont.FreeTypeFont, character: str, widening: int) -> NDArray[np.uint8]:
    """Draw one character in white on black, its ink in the middle, shape (64, 64)."""
    from PIL import Image, ImageDraw

    left, top, right, low = font.getbbox(character, stroke_width=widening)
    origin = (CANVAS - left - right) / 2, (CANVAS - top - low) / 2
    image = Image.new("L", (CANVAS, CANVAS))
    ImageDraw.Draw(image).text(origin, character, fill=255, font=font, stroke_width=widening)
    return np.asarray(image)


@lru_cache(maxsize=8)
def _glyph_bank(characters: str) -> Tensor:
    """Draw every character undistorted, shape (fonts x widenings, characters, 64, 64), uint8.

    One font size per font, so that "o" stays smaller than "O"; each glyph is centred on its ink.
    """
    from PIL import ImageFont

    pages = []
    for path in _fonts_with(characters):
        # The basic layout, because the other one is an optional part of Pillow.
        open_font = partial(ImageFont.truetype, str(path), layout_engine=ImageFont.Layout.BASIC)
        boxes = [open_font(100).getbbox(character) for character in characters]
        extent = max(max(right - left, low - top) for left, top, right, low in boxes)
        font = open_font(int(100 * GLYPH_EXTENT / max(extent, 1)))
        for widening in STROKE_WIDENINGS:
            page = [_centred(font, character, widening) for character in characters]
            pages.append(np.stack(page))
    bank = torch.from_numpy(np.stack(pages))
    blank = (bank.amax(dim=(2, 3)) == 0).any(dim=0)
    if blank.any():
        empty = "".join(c for c, is_blank in zip(characters, blank, strict=True) if is_blank)
        raise DataError(f"characters of glyphs: {empty!r} leaves no ink when drawn")
    return bank


def _distorted(
    bank: Tensor, labels: Tensor, size: int, distortion: float, generator: torch.Generator
) -> Tensor:
    """Draw one image per label, shape (N, 1, size, size), uint8."""
    parts = [
        _distorted_part(bank, part, size, distortion, generator)
        for part in labels.split(GLYPHS_AT_ONCE)
    ]
    return torch.cat(parts)


def _distorted_part(
    bank: Tensor, labels: Tensor, size: int, distortion: float, generator: torch.Generator
) -> Tensor:
    """Sample each glyph along a randomly bent grid, finer than the image, then average down.

    At distortion 1: rotation to 0.25 rad (14 degrees), shear to 0.2, scale by e^(+-0.15), shift to
    6 % of the side, smooth displacement of strokes (standard deviation 1.5 %), ink 70-100 %.
    """
    count = len(labels)

    def spread(reach: float) -> Tensor:
        return (2 * torch.rand(count, generator=generator) - 1) * reach * distortion

    style = torch.randint(len(bank), (count,), generator=generator)
    angle, shear, zoom = spread(0.25), spread(0.2), torch.exp(spread(0.15))
    shift = torch.stack([spread(0.12), spread(0.12)], dim=1)  # the side is 2 in these coordinates
    ink = 1 - 0.3 * min(distortion, 1.0) * torch.rand(count, generator=generator)
    wobble = 0.03 * distortion * torch.randn(count, 2, 4, 4, generator=generator)

    cosine, sine = angle.cos() * zoom, angle.sin() * zoom
    rows = [torch.stack([cosine, shear * cosine - sine], 1)]
    rows += [torch.stack([sine, shear * sine + cosine], 1)]
    affine = torch.cat([torch.stack(rows, 1), shift[:, :, None]], dim=2)  # (N, 2, 3)
    finer = max(2, math.ceil(48 / size))
    side = size * finer
    grid = F.affine_grid(affine, [count, 1, side, side], align_corners=False)
    bend = F.interpolate(wobble, size=(side, side), mode="bicubic", align_corners=True)
    grid = grid + bend.permute(0, 2, 3, 1)
    glyphs = bank[style, labels][:, None].float()  # (N, 1, 64, 64)
    fine = F.grid_sample(glyphs, grid, align_corners=False)
    images = F.avg_pool2d(fine, finer) * ink[:, None, None, None]
    return images.round().clamp(0, 255).to(torch.uint8)


def _redraw_repeats(
    train_x: Tensor, test_x: Tensor, test_y: Tensor, redraw: Callable[[Tensor], Tensor]
) -> None:
    """Replace, in place, each test image that equals a training image."""
    seen = {image.numpy().tobytes() for image in train_x}
    for _ in range(20):
        repeats = [i for i, image in enumerate(test_x) if image.numpy().tobytes() in seen]
        if not repeats:
            return
        test_x[repeats] = redraw(test_y[repeats])
    raise DataError(
        f"glyphs: {len(repeats)} of {len(test_x)} test images still equal a training image after "
        f"20 draws; raise distortion or size, or lower count"
    )


# --- Published: files with a known checksum ---------------------------------------------------


@dataclass(frozen=True)
class KnownFile:
    """A published file: where it lies under the root, and what its content must be."""

    path: str
    md5: str
    size: int | None = None  # bytes


# The uncompressed files, in the order train images, train labels, test images, test labels.
IDX_FILES = {
    "mnist": (
        KnownFile(
            "MNIST/raw/train-images-idx3-ubyte", "6bbc9ace898e44ae57da46a324031adb", 47040016
        ),
        KnownFile("MNIST/raw/train-labels-idx1-ubyte", "a25bea736e30d166cdddb491f175f624", 60008),
        KnownFile("MNIST/raw/t10k-images-idx3-ubyte", "2646ac647ad5339dbf082846283269ea", 7840016),
        KnownFile("MNIST/raw/t10k-labels-idx1-ubyte", "27ae3e4e09519cfbb04c329615203637", 10008),
    ),
    "fashion-mnist": (
        KnownFile(
            "FashionMNIST/raw/train-images-idx3-ubyte", "f4a8712d7a061bf5bd6d2ca38dc4d50a", 47040016
        ),
        KnownFile(
            "FashionMNIST/raw/train-labels-idx1-ubyte", "9018921c3c673c538a1fc5bad174d6f9", 60008
        ),
        KnownFile(
            "FashionMNIST/raw/t10k-images-idx3-ubyte", "8181f5470baa50b63fa0f6fddb340f0a", 7840016
        ),
        KnownFile(
            "FashionMNIST/raw/t10k-labels-idx1-ubyte", "15d484375f8d13e6eb1aabb0c3f46965", 10008
        ),
    ),
}
IDX_CLASSES = {
    "mnist": TEN_DIGITS,
    "fashion-mnist": (
        *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
        *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
    ),
}
SVHN_FOLDER = "SVHN"  # torchvision would put its two files at the root itself


def _command(name: str, root: Path) -> str:
    """The command that downloads this data set to where it was looked for."""
    place = "" if root == data_root() else f" --root {shlex.quote(str(root))}"
    return f"python -m lmc_lessons.datasets {name}{place}"


def _verified(name: str, root: Path, file: KnownFile) -> bytes:
    """Return a published file's content, once it is proved to be the published one."""
    path, command = root / file.path, _command(name, root)
    packed = path.with_name(path.name + ".gz")
    mend = f"delete it and run: {command}"
    if path.is_file():
        content = path.read_bytes()
    elif packed.is_file():
        path, content = packed, packed.read_bytes()
    else:
        debian = " (on Debian also: apt-get install dataset-fashion-mnist, see data/README.md)"
        hint = debian if name == "fashion-mnist" else ""
        raise MissingDataError(f"{name}: {path} is missing; get it with: {command}{hint}")
    if _is_page(content[:512]):
        raise DataError(f"{name}: {path} is an HTML page saved as data; {mend}")
    if path is packed:
        content = _unpacked(name, packed, content, mend)
    if file.size is not None and len(content) < file.size:
        raise DataError(f"{name}: {path} is truncated, {len(content)} of {file.size} bytes; {mend}")
    found = hashlib.md5(content, usedforsecurity=False).hexdigest()
    if found != file.md5:
        raise DataError(
            f"{name}: {path} has the wrong checksum, MD5 {found} instead of {file.md5}; {mend}"
        )
    return content


def _is_page(start: bytes) -> bool:
    """Whether this is how a web page begins: an error page or a login form, saved as data."""
    return start.lstrip().lower().startswith((b"<!doctype", b"<html", b"<head", b"<?xml"))


def _unpacked(name: str, path: Path, content: bytes, mend: str) -> bytes:
    try:
        return gzip.decompress(content)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{name}: {path} is truncated or no gzip file ({error}); {mend}") from error


def _parsed_idx(name: str, content: bytes, dimensions: int) -> NDArray[np.uint8]:
    """Read the idx format: two zero bytes, the type, the number of axes, their lengths, the values.

    Integers are big-endian; type 8 means unsigned bytes, the only one these data sets use.
    """
    header = 4 + 4 * dimensions
    if len(content) < header or content[:4] != bytes([0, 0, 8, dimensions]):
        raise DataError(f"{name}: not an idx file of unsigned bytes with {dimensions} axes")
    shape = np.frombuffer(content, ">u4", dimensions, offset=4).astype(int)
    if len(content) != header + math.prod(shape.tolist()):
        raise DataError(
            f"{name}: an idx header announces {_by(shape.tolist())} values, "
            f"but {len(content) - header} follow"
        )
    return np.frombuffer(content, np.uint8, offset=header).reshape(shape)


def _idx(name: str, root: Path) -> Dataset:
    """MNIST or Fashion-MNIST, from the four files of their common format."""
    contents = [_verified(name, root, file) for file in IDX_FILES[name]]
    images = [_from_bytes(_parsed_idx(name, content, 3))[:, None] for content in contents[::2]]
    labels = [
        torch.from_numpy(_parsed_idx(name, content, 1).astype(np.int64))
        for content in contents[1::2]
    ]
    return Dataset(name, "original", images[0], labels[0], images[1], labels[1], IDX_CLASSES[name])


def _cifar10(root: Path) -> Dataset:
    """The one place where pickles are read: by torchvision, once each checksum is proved."""
    from torchvision.datasets import CIFAR10

    listed = (*CIFAR10.train_list, *CIFAR10.test_list)
    listed = (*listed, (CIFAR10.meta["filename"], CIFAR10.meta["md5"]))
    for file, md5 in listed:
        _verified("cifar10", root, KnownFile(f"{CIFAR10.base_folder}/{file}", md5))
    train, test = CIFAR10(root, train=True), CIFAR10(root, train=False)
    return Dataset(
        "cifar10",
        "original",
        _from_bytes(train.data.transpose(0, 3, 1, 2)),
        torch.tensor(train.targets),
        _from_bytes(test.data.transpose(0, 3, 1, 2)),
        torch.tensor(test.targets),
        tuple(train.classes),
    )


def _svhn(root: Path) -> Dataset:
    from torchvision.datasets import SVHN

    for split in ("train", "test"):
        _, file, md5 = SVHN.split_list[split]
        _verified("svhn", root, KnownFile(f"{SVHN_FOLDER}/{file}", md5))
    train, test = (SVHN(root / SVHN_FOLDER, split=split) for split in ("train", "test"))
    return Dataset(
        "svhn",
        "original, without extra",
        _from_bytes(train.data),
        torch.from_numpy(train.labels),
        _from_bytes(test.data),
        torch.from_numpy(test.labels),
        TEN_DIGITS,
    )


def _fetch_mnist(root: Path) -> None:
    from torchvision.datasets import MNIST

    MNIST(root, download=True)


def _fetch_fashion_mnist(root: Path) -> None:
    from torchvision.datasets import FashionMNIST

    FashionMNIST(root, download=True)


def _fetch_cifar10(root: Path) -> None:
    from torchvision.datasets import CIFAR10

    CIFAR10(root, download=True)


def _fetch_svhn(root: Path) -> None:
    from torchvision.datasets import SVHN

    for split in ("train", "test"):
        SVHN(root / SVHN_FOLDER, split=split, download=True)


# --- Any folder of images ---------------------------------------------------------------------

IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm"}
DEEP_MODES = ("I", "F")  # Pillow's names for more than 8 bits per channel start with these


def _folder(path: str, seed: int, size: int | None = None) -> Dataset:
    """Read ``train/CLASS/*`` and ``test/CLASS/*``, or split ``CLASS/*``."""
    if size is not None:
        size = _whole_number("size of a folder's images", size, 1, 4096)
    place = Path(path).expanduser()
    if not path or not place.is_dir():
        raise MissingDataError(
            f"folder:{path} is not a folder; needed: PATH/train/CLASS/* with PATH/test/CLASS/*, "
            f"or PATH/CLASS/*"
        )
    name = f"folder:{place.resolve().name}"
    files, labels, class_names, train_count = _listed_images(place)
    images = _decoded(files, size)
    y = np.array(labels, dtype=np.int64)
    if train_count is None:
        train, test = _fifth_of_each_class(y, class_names, place, seed)
    else:
        train, test = np.arange(train_count), np.arange(train_count, len(files))
    kinds = ", ".join(sorted({file.suffix.lower().lstrip(".") for file in files}))
    variant = f"image folder of {kinds}"
    variant += "" if size is None else f", resized to {size} pixels"
    variant += "" if train_count is not None else f", split by seed {seed}"
    x_train, x_test = _from_bytes(images[train]), _from_bytes(images[test])
    y_train, y_test = torch.from_numpy(y[train]), torch.from_numpy(y[test])
    return Dataset(name, variant, x_train, y_train, x_test, y_test, class_names)


def _listed_images(place: Path) -> tuple[list[Path], list[int], tuple[str, ...], int | None]:
    """Return files, labels, class names, and how many files are train (None: not split)."""
    splits = [place / "train", place / "test"]
    if not any(split.is_dir() for split in splits):
        classes = _class_files(place)
        files, labels = _flat(classes)
        return files, labels, tuple(classes), None
    for split in splits:
        if not split.is_dir():
            raise DataError(f"{place} has no {split.name}/; needed: train/ and test/, or neither")
    train, test = (_class_files(split) for split in splits)
    if train.keys() != test.keys():
        differing = ", ".join(sorted(train.keys() ^ test.keys()))
        raise DataError(
            f"{place}: train/ and test/ must have the same classes; differing: {differing}"
        )
    train_files, train_labels = _flat(train)
    test_files, test_labels = _flat(test)
    return train_files + test_files, train_labels + test_labels, tuple(train), len(train_files)


def _class_files(folder: Path) -> dict[str, list[Path]]:
    """The image files below each class folder, classes and files sorted by name."""
    visible = (entry for entry in folder.iterdir() if not entry.name.startswith("."))
    classes: dict[str, list[Path]] = {}
    for entry in sorted(visible):
        if entry.is_dir():
            files = (file for file in entry.rglob("*") if file.suffix.lower() in IMAGE_SUFFIXES)
            classes[entry.name] = sorted(file for file in files if not file.name.startswith("."))
    if not classes:
        raise DataError(f"{folder} is empty: it has no class folders; needed: CLASS/* with images")
    for name, files_of_class in classes.items():
        if not files_of_class:
            raise DataError(
                f"{folder / name} is empty: it has no images; "
                f"allowed: {' '.join(sorted(IMAGE_SUFFIXES))}"
            )
    return classes


def _flat(classes: dict[str, list[Path]]) -> tuple[list[Path], list[int]]:
    pairs = [(file, label) for label, files in enumerate(classes.values()) for file in files]
    return [file for file, _ in pairs], [label for _, label in pairs]


def _fifth_of_each_class(
    labels: NDArray[np.int64], class_names: tuple[str, ...], place: Path, seed: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return indices of train and test: a fifth of each class, at least one image, is test."""
    random = np.random.default_rng(seed)
    train, test = [], []
    for label, name in enumerate(class_names):
        members = random.permutation(np.flatnonzero(labels == label))
        if len(members) < 2:
            raise DataError(f"{place / name} has 1 image; at least 2 are needed to split it")
        held_out = max(1, len(members) // 5)
        test.append(members[:held_out])
        train.append(members[held_out:])
    return np.sort(np.concatenate(train)), np.sort(np.concatenate(test))


def _decoded(files: list[Path], size: int | None) -> NDArray[np.uint8]:
    """Decode image files of one size into an array of shape (N, C, H, W), C = 1 or 3.

    A plain loop: for images of 32x32 pixels threads were measured and are slower.
    """
    images = [_decoded_one(file, size) for file in files]
    expected = images[0].shape[1:]
    for file, image in zip(files, images, strict=True):
        if image.shape[1:] != expected:
            raise DataError(
                f"{file} is {_by(image.shape[1:])} pixels (height x width), but {files[0].name} is "
                f"{_by(expected)}; all must be equal, or give size=N to resize them"
            )
    channels = max(len(image) for image in images)
    stacked = np.empty((len(images), channels, *expected), np.uint8)
    for row, image in zip(stacked, images, strict=True):
        row[:] = image  # a grey image is repeated over the three channels
    return stacked


def _decoded_one(file: Path, size: int | None) -> NDArray[np.uint8]:
    """One image as uint8, shape (1, H, W) if grey, else (3, H, W)."""
    from PIL import Image

    content = file.read_bytes()  # at once: Pillow would read the file in many small pieces
    try:
        opened = Image.open(io.BytesIO(content))
        deep = opened.mode.startswith(DEEP_MODES)
        image = opened.convert("L" if opened.mode in ("1", "L", "LA") else "RGB")
    except (OSError, EOFError, SyntaxError, Image.DecompressionBombError) as error:
        page = _is_page(content[:512])
        what = "an HTML page saved as an image" if page else "truncated or not an image"
        raise DataError(f"{file} is {what}; delete or replace it") from error
    if deep:
        raise DataError(f"{file} has more than 8 bits per channel; convert it to 8 bits")
    if size is not None and image.size != (size, size):
        image = image.resize((size, size), Image.Resampling.BILINEAR)
    pixels = np.asarray(image)
    return pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)


# --- The table of names -----------------------------------------------------------------------


@dataclass(frozen=True)
class Embedded:
    """A data set that needs no files: how to make it, and the options it takes."""

    build: Callable[..., Dataset]
    options: tuple[str, ...] = ()


@dataclass(frozen=True)
class Published:
    """A data set on disk: how to read it from a root, and how torchvision fetches it to there."""

    read: Callable[[Path], Dataset]
    fetch: Callable[[Path], None]


_EMBEDDED = {
    "digits": Embedded(_digits),
    "glyphs": Embedded(_glyphs, ("size", "count", "characters", "distortion")),
    "breast-cancer": Embedded(_breast_cancer),
    "moons": Embedded(_moons, ("count", "noise")),
    "sine": Embedded(_sine, ("count", "noise")),
}
_PUBLISHED = {
    "mnist": Published(partial(_idx, "mnist"), _fetch_mnist),
    "fashion-mnist": Published(partial(_idx, "fashion-mnist"), _fetch_fashion_mnist),
    "cifar10": Published(_cifar10, _fetch_cifar10),
    "svhn": Published(_svhn, _fetch_svhn),
}


def _short(name: str) -> str:
    return "folder:PATH" if name.startswith("folder:") else name


def _builder(name: str, root: str | Path | None) -> tuple[Callable[..., Dataset], tuple[str, ...]]:
    """Return what makes this data set from a seed and options, and the options it takes."""
    if isinstance(name, str) and name.startswith("folder:"):
        return lambda **given: _folder(name.removeprefix("folder:"), **given), ("size",)
    if name in _EMBEDDED:
        return _EMBEDDED[name].build, _EMBEDDED[name].options
    if name in _PUBLISHED:
        return lambda seed: _PUBLISHED[name].read(data_root(root)), ()
    raise DataError(f"unknown data set {name!r}; known: {', '.join(names())}, folder:PATH")


def main(arguments: Sequence[str] | None = None) -> int:
    """Download one data set from the command line; one line says how it went.

    Args:
        arguments: The words after the command; None: those of the process.

    Returns:
        The exit code: 0 if the data set is there and verified, 2 if not.

    Taught in: book/connectivity/weight-matching
    """
    parser = argparse.ArgumentParser(
        prog="python -m lmc_lessons.datasets", description="Download a published data set."
    )
    parser.add_argument("name", metavar="NAME", help=", ".join(_PUBLISHED))
    parser.add_argument("--root", help="default: $LMC_LESSONS_DATA, else data/cache")
    given = parser.parse_args(arguments)
    if given.name in _EMBEDDED:
        print(f"{given.name} is embedded: nothing to download")
        return 0
    try:
        dataset = download(given.name, given.root)
    except DataError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{dataset} in {data_root(given.root)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

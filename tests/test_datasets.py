"""The data sets: what is promised about their arrays, and one clear error for each defect."""

from __future__ import annotations

import gzip
import hashlib
import math
import os
import pickle
import shutil
from collections.abc import Callable
from dataclasses import FrozenInstanceError
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw, ImageFont
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from torch import Tensor

from lmc_lessons import datasets
from lmc_lessons.datasets import DataError, Dataset, KnownFile, MissingDataError, load

REPOSITORY = Path(__file__).resolve().parents[1]
EMBEDDED = ("digits", "glyphs", "breast-cancer", "moons", "sine")
PAGE = b"\n<!DOCTYPE html><html><body>Please log in</body></html>"


def rows(x: Tensor) -> list[bytes]:
    return [row.numpy().tobytes() for row in x]


def message(action: Callable[[], Any]) -> str:
    """The text of the DataError that this raises, which must be one line."""
    with pytest.raises(DataError) as caught:
        action()
    text = str(caught.value)
    assert "\n" not in text
    return text


# --- What holds for every data set ---------------------------------------------------------------


@pytest.mark.parametrize("name", EMBEDDED)
def test_promises_of_embedded(name: str) -> None:
    data = load(name)
    assert data.name == name
    for x, y in ((data.train_x, data.train_y), (data.test_x, data.test_y)):
        assert x.dtype == torch.float32
        assert y.dtype == torch.int64
        assert 0 <= x.min() < x.max() <= 1
        assert len(x) == len(y)
        assert tuple(x.shape[1:]) == data.input_shape
        assert set(y.tolist()) == set(range(data.classes))
    assert not set(rows(data.train_x)) & set(rows(data.test_x))


@pytest.mark.parametrize("name", EMBEDDED)
def test_seed_fixes_everything(name: str) -> None:
    first, again, other = load(name, seed=3), load(name, seed=3), load(name, seed=4)
    assert torch.equal(first.train_x, again.train_x)
    assert torch.equal(first.test_y, again.test_y)
    assert first.sha256 == again.sha256 != other.sha256
    assert "seed 3" in first.variant


def test_hash_is_over_the_four_arrays() -> None:
    data = load("digits")
    arrays = (data.train_x, data.train_y, data.test_x, data.test_y)
    expected = hashlib.sha256(b"".join(array.numpy().tobytes() for array in arrays)).hexdigest()
    assert data.sha256 == expected


def test_repr_is_short_and_says_what_it_is() -> None:
    text = repr(load("digits"))
    assert len(text) < 120
    for part in ("digits", "1,347 train", "450 test", "1x8x8", "10 classes"):
        assert part in text


def test_is_frozen() -> None:
    data = load("moons")
    with pytest.raises(FrozenInstanceError):
        data.name = "other"  # type: ignore[misc]


def test_names_and_cards_agree() -> None:
    card_titles = (REPOSITORY / "data" / "README.md").read_text(encoding="utf-8")
    for name in (*datasets.names(), "folder:PATH"):
        assert f"`{name}`" in card_titles, f"data/README.md has no card for {name}"


# --- Embedded ------------------------------------------------------------------------------------


def test_digits_is_all_of_scikit_learn_in_a_stratified_split() -> None:
    from sklearn.datasets import load_digits

    data, source = load("digits", seed=1), load_digits()
    assert (len(data.train_x), len(data.test_x)) == (1347, 450)
    assert data.input_shape == (1, 8, 8)
    found = torch.cat([data.train_x, data.test_x]) * 16
    images = source.images.astype(np.float32)
    expected = {(image.tobytes(), int(y)) for image, y in zip(images, source.target, strict=True)}
    labels = torch.cat([data.train_y, data.test_y]).tolist()
    assert set(zip(rows(found), labels, strict=True)) == expected
    share = data.test_y.bincount() / (data.test_y.bincount() + data.train_y.bincount())
    assert torch.allclose(share, torch.tensor(450 / 1797), atol=0.01)


def test_breast_cancer_is_scaled_by_its_training_split() -> None:
    data = load("breast-cancer")
    assert (len(data.train_x), len(data.test_x), data.input_shape) == (426, 143, (30,))
    assert data.class_names == ("malignant", "benign")
    assert torch.equal(data.train_x.amin(0), torch.zeros(30))
    assert torch.equal(data.train_x.amax(0), torch.ones(30))


@pytest.mark.parametrize("name", ["moons", "sine"])
def test_toys_need_a_curved_boundary(name: str) -> None:
    data = load(name, count=1000, noise=0.02)
    assert (len(data.train_x), len(data.test_x), data.input_shape) == (1000, 250, (2,))
    train, test = (data.train_x, data.train_y), (data.test_x, data.test_y)
    line = LogisticRegression().fit(*train).score(*test)
    neighbours = KNeighborsClassifier(5).fit(*train).score(*test)
    assert neighbours > 0.95
    assert line < neighbours - 0.03


def test_glyphs_classes_are_balanced_and_can_be_read() -> None:
    data = load("glyphs")
    assert data.input_shape == (1, 16, 16)
    assert data.train_y.bincount().tolist() == [200] * 10
    assert data.test_y.bincount().tolist() == [50] * 10
    model = KNeighborsClassifier(3).fit(data.train_x.flatten(1), data.train_y)
    assert model.score(data.test_x.flatten(1), data.test_y) > 0.85


@pytest.mark.parametrize("characters", ["0123456789", "ABCDEFGHIJ", "αβγ<"])
def test_glyphs_are_really_in_the_fonts(characters: str) -> None:
    """No box for a missing character: all differ, and none is what a font draws for "unknown"."""
    unknown = "\U0010fffe"
    for path in datasets._fonts_with(characters):
        font = ImageFont.truetype(str(path), 40)
        drawn = set()
        for character in characters + unknown:
            image = Image.new("L", (80, 80))
            ImageDraw.Draw(image).text((20, 10), character, fill=255, font=font)
            drawn.add(image.tobytes())
        assert len(drawn) == len(characters) + 1, path.name


def test_glyphs_leave_out_tex_fonts_where_their_code_points_lie() -> None:
    used = {path.name for path in datasets._fonts_with("a1")}
    assert set(datasets.TEX_FONTS) <= used
    assert not set(datasets.TEX_FONTS) & {path.name for path in datasets._fonts_with("a<")}


def test_glyphs_keep_letters_of_one_shape_apart_by_size() -> None:
    data = load("glyphs", characters="oO", distortion=0.1, count=200)
    assert data.class_names == ("o", "O")
    heights = (data.train_x[:, 0].amax(2) > 0.2).sum(1).double()
    assert heights[data.train_y == 0].mean() < 0.85 * heights[data.train_y == 1].mean()


def test_glyphs_distortion_is_a_strength() -> None:
    def spread(distortion: float) -> float:
        data = load("glyphs", distortion=distortion, characters="7", count=400)
        return float(data.train_x.var(0).mean())

    assert spread(0.1) < spread(1.0) < spread(3.0)


def test_glyphs_of_other_seeds_share_no_image() -> None:
    first, second = (load("glyphs", seed=seed, count=400) for seed in (0, 1))
    images = [set(rows(part)) for data in (first, second) for part in (data.train_x, data.test_x)]
    assert len(set.union(*images)) == 400 + 100 + 400 + 100


def test_glyphs_test_images_are_drawn_again_until_new() -> None:
    train = torch.arange(4, dtype=torch.uint8).reshape(4, 1, 1, 1)
    test = torch.tensor([3, 9], dtype=torch.uint8).reshape(2, 1, 1, 1)
    draws = iter([1, 2, 7])

    def redraw(labels: Tensor) -> Tensor:
        assert labels.tolist() == [5]
        return torch.tensor([next(draws)], dtype=torch.uint8).reshape(1, 1, 1, 1)

    datasets._redraw_repeats(train, test, torch.tensor([5, 6]), redraw)
    assert test.flatten().tolist() == [7, 9]
    text = message(
        lambda: datasets._redraw_repeats(train, train.clone(), torch.zeros(4), lambda _: train)
    )
    assert "raise distortion or size, or lower count" in text


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"size": 0}, "size of glyphs must be a whole number from 4 to 256; got 0"),
        ({"size": 16.5}, "got 16.5"),
        ({"count": -1}, "count of glyphs must be a whole number from 1"),
        ({"count": True}, "got True"),
        ({"distortion": 0}, "distortion of glyphs must be a number from 0.1 to 4; got 0"),
        ({"distortion": math.nan}, "got nan"),
        ({"characters": ""}, "distinct visible characters in one string; got ''"),
        ({"characters": "AAB"}, "distinct visible characters"),
        ({"characters": "A B"}, "distinct visible characters"),
        ({"characters": 12}, "distinct visible characters"),
        ({"characters": "一二"}, "no text font that ships with matplotlib has all of '一二'"),
        ({"colour": 3}, "glyphs has no option 'colour'; allowed: size, count, characters"),
    ],
)
def test_glyphs_refuse(options: dict[str, Any], expected: str) -> None:
    assert expected in message(lambda: load("glyphs", **options))


# --- Subsets -------------------------------------------------------------------------------------


def test_limit_keeps_pairs_together_and_subsets_are_nested() -> None:
    full, small, large = load("digits"), load("digits", limit=100), load("digits", limit=600)
    assert (len(small.train_x), len(small.test_x)) == (100, 100)
    assert (len(large.train_x), len(large.test_x)) == (600, 450)
    assert torch.equal(large.train_x[:100], small.train_x)
    assert torch.equal(large.test_y[:100], small.test_y)
    pairs = set(zip(rows(full.train_x), full.train_y.tolist(), strict=True))
    kept = set(zip(rows(large.train_x), large.train_y.tolist(), strict=True))
    assert len(kept) == 600
    assert kept <= pairs
    assert "subset 100 + 100 by seed 0" in small.variant
    assert small.sha256 != full.sha256


def test_subset_with_its_own_test_size_and_seed() -> None:
    full = load("digits")
    one, other = full.subset(50, 20, seed=1), full.subset(50, 20, seed=2)
    assert (len(one.train_x), len(one.test_x)) == (50, 20)
    assert not torch.equal(one.train_y, other.train_y)


@pytest.mark.parametrize("limit", [0, -5, 1348, 2.0, True, "10"])
def test_limit_out_of_range(limit: Any) -> None:
    text = message(lambda: load("digits", limit=limit))
    assert text == f"limit for digits must be a whole number from 1 to 1347; got {limit!r}"


# --- Wrong requests ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["minst", "", "MNIST", "folder", 7])
def test_unknown_name_lists_the_known(name: Any) -> None:
    text = message(lambda: load(name))
    assert text.startswith(f"unknown data set {name!r}; known: ")
    for known in (*datasets.names(), "folder:PATH"):
        assert known in text


def test_unknown_option() -> None:
    assert message(lambda: load("digits", size=8)) == "digits has no option 'size'; it takes none"
    assert "folder:PATH has no option 'sise'; allowed: size" in message(
        lambda: load("folder:x", sise=8)
    )


@pytest.mark.parametrize("seed", [-1, 2**31, 0.5, None])
def test_bad_seed(seed: Any) -> None:
    assert "seed must be a whole number from 0" in message(lambda: load("digits", seed=seed))


@pytest.mark.parametrize("options", [{"count": 1}, {"noise": -0.1}, {"noise": "much"}])
def test_toys_refuse(options: dict[str, Any]) -> None:
    for name in ("moons", "sine"):
        (option, given), *_ = options.items()
        text = message(partial(load, name, **options))
        assert f"{option} of {name} must be a" in text
        assert f"got {given!r}" in text


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"train_y": torch.tensor([0, 2])}, "x (train): label 2 is out of range; allowed: 0 to 1"),
        ({"test_y": torch.tensor([-1])}, "x (test): label -1 is out of range; allowed: 0 to 1"),
        ({"test_y": torch.tensor([0, 1])}, "x (test): inputs 1x3 and labels 2 do not match"),
        ({"train_x": torch.zeros(2, 4)}, "train inputs have shape 4, test inputs 3"),
        ({"train_x": torch.zeros(2, 3).double()}, "need float32 and int64"),
        ({"test_x": torch.zeros(0, 3), "test_y": torch.zeros(0).long()}, "x (test): no samples"),
    ],
)
def test_dataset_refuses_what_it_does_not_promise(change: dict[str, Any], expected: str) -> None:
    good = {
        "name": "x",
        "variant": "test",
        "train_x": torch.zeros(2, 3),
        "train_y": torch.tensor([0, 1]),
        "test_x": torch.zeros(1, 3),
        "test_y": torch.tensor([1]),
        "class_names": ("a", "b"),
    }
    assert Dataset(**good).classes == 2  # type: ignore[arg-type]
    assert expected in message(lambda: Dataset(**{**good, **change}))


# --- MNIST and Fashion-MNIST ---------------------------------------------------------------------


def idx(array: np.ndarray) -> bytes:
    header = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, dtype=">u4").tobytes()
    return header + array.astype(np.uint8).tobytes()


FAKE = (
    np.arange(6 * 28 * 28).reshape(6, 28, 28) % 256,
    np.array([3, 1, 4, 1, 5, 9]),
    np.arange(2 * 28 * 28).reshape(2, 28, 28) % 251,
    np.array([2, 6]),
)


def publish(monkeypatch: pytest.MonkeyPatch, name: str, contents: list[bytes]) -> list[str]:
    """Make these contents the published ones; return the files' paths below the root."""
    paths = [file.path for file in datasets.IDX_FILES[name]]
    known = tuple(
        KnownFile(path, hashlib.md5(content).hexdigest(), len(content))
        for path, content in zip(paths, contents, strict=True)
    )
    monkeypatch.setitem(datasets.IDX_FILES, name, known)
    return paths


def write(root: Path, paths: list[str], contents: list[bytes]) -> list[Path]:
    places = [root / path for path in paths]
    for place, content in zip(places, contents, strict=True):
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(content)
    return places


@pytest.fixture(params=["mnist", "fashion-mnist"])
def fake(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> tuple[str, Path, list[Path]]:
    """A root with four small idx files that pass as the published ones."""
    contents = [idx(array) for array in FAKE]
    paths = publish(monkeypatch, request.param, contents)
    return request.param, tmp_path, write(tmp_path, paths, contents)


def test_idx_values_and_splits(fake: tuple[str, Path, list[Path]]) -> None:
    name, root, _ = fake
    data = load(name, root=root)
    assert data.input_shape == (1, 28, 28)
    assert np.allclose(data.train_x[:, 0].numpy() * 255, FAKE[0], atol=1e-4)
    assert np.allclose(data.test_x[:, 0].numpy() * 255, FAKE[2], atol=1e-4)
    assert (data.train_y.tolist(), data.test_y.tolist()) == ([3, 1, 4, 1, 5, 9], [2, 6])


def test_idx_compressed_beside_is_enough(fake: tuple[str, Path, list[Path]]) -> None:
    name, root, places = fake
    expected = load(name, root=root).sha256
    for place in places:
        place.with_name(place.name + ".gz").write_bytes(gzip.compress(place.read_bytes()))
        place.unlink()
    assert load(name, root=root).sha256 == expected
    packed = places[0].with_name(places[0].name + ".gz")
    packed.write_bytes(packed.read_bytes()[:-30])
    assert "is truncated or no gzip file" in message(lambda: load(name, root=root))


@pytest.mark.parametrize("which", range(4))
@pytest.mark.parametrize(
    ("damage", "expected"),
    [
        (lambda content: content[:-1], "is truncated, "),
        (lambda content: b"", "is truncated, 0 of "),
        (lambda content: content[:-1] + bytes([content[-1] ^ 1]), "has the wrong checksum, MD5 "),
        (lambda content: content + b"\0", "has the wrong checksum, MD5 "),
        (lambda content: PAGE, "is an HTML page saved as data"),
    ],
    ids=["cut", "empty", "bit", "longer", "page"],
)
def test_idx_damage_is_found_before_anything_is_parsed(
    fake: tuple[str, Path, list[Path]],
    monkeypatch: pytest.MonkeyPatch,
    damage: Callable[[bytes], bytes],
    expected: str,
    which: int,
) -> None:
    name, root, places = fake
    places[which].write_bytes(damage(places[which].read_bytes()))
    monkeypatch.setattr(datasets, "_parsed_idx", lambda *_: pytest.fail("parsed unverified data"))
    text = message(lambda: load(name, root=root))
    assert expected in text
    assert text.startswith(f"{name}: {places[which]} ")
    assert f"delete it and run: python -m lmc_lessons.datasets {name} --root {root}" in text


def test_idx_labels_out_of_range(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    contents = [idx(FAKE[0]), idx(np.array([0, 1, 2, 3, 4, 10])), idx(FAKE[2]), idx(FAKE[3])]
    write(tmp_path, publish(monkeypatch, "mnist", contents), contents)
    text = message(lambda: load("mnist", root=tmp_path))
    assert text == "mnist (train): label 10 is out of range; allowed: 0 to 9"


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"\0\0\x08", "not an idx file of unsigned bytes with 3 axes"),
        (b"\0\0\x0d\x03" + bytes(12), "not an idx file of unsigned bytes with 3 axes"),
        (idx(FAKE[1]), "not an idx file of unsigned bytes with 3 axes"),
        (idx(FAKE[0])[:-5], "an idx header announces 6x28x28 values, but 4699 follow"),
    ],
)
def test_idx_format_is_checked_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes, expected: str
) -> None:
    contents = [content, *(idx(array) for array in FAKE[1:])]
    write(tmp_path, publish(monkeypatch, "mnist", contents), contents)
    assert expected in message(lambda: load("mnist", root=tmp_path))


@pytest.mark.parametrize("name", ["mnist", "fashion-mnist", "cifar10", "svhn"])
def test_absent_files_name_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    with pytest.raises(MissingDataError) as caught:
        load(name, root=tmp_path)
    text = str(caught.value)
    assert f"is missing; get it with: python -m lmc_lessons.datasets {name} --root " in text
    assert ("apt-get install dataset-fashion-mnist" in text) == (name == "fashion-mnist")
    monkeypatch.setenv("LMC_LESSONS_DATA", str(tmp_path))
    text = message(lambda: load(name))
    assert str(tmp_path) in text
    assert "--root" not in text


def test_root_comes_from_argument_then_environment_then_repository(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LMC_LESSONS_DATA", str(tmp_path / "a"))
    assert datasets.data_root(tmp_path / "b") == tmp_path / "b"
    assert datasets.data_root() == tmp_path / "a"
    monkeypatch.delenv("LMC_LESSONS_DATA")
    assert datasets.data_root() == REPOSITORY / "data" / "cache"


@pytest.mark.parametrize(
    ("name", "reader"), [("mnist", "MNIST"), ("fashion-mnist", "FashionMNIST")]
)
def test_real_files_agree_with_torchvision(name: str, reader: str) -> None:
    import torchvision

    root = os.environ.get("LMC_LESSONS_DATA")
    if not root or not (Path(root) / reader).is_dir():
        pytest.skip(f"set LMC_LESSONS_DATA to a folder with {reader} to test the real files")
    data = load(name, root=root)
    for train, x, y in ((True, data.train_x, data.train_y), (False, data.test_x, data.test_y)):
        source = getattr(torchvision.datasets, reader)(root, train=train)
        assert torch.equal((x[:, 0] * 255).round().byte(), source.data)
        assert torch.equal(y, source.targets)
    assert (len(data.train_x), len(data.test_x)) == (60000, 10000)


# --- CIFAR-10 and SVHN ---------------------------------------------------------------------------


class Trap:
    """A pickle that makes a folder when it is loaded."""

    def __init__(self, place: Path) -> None:
        self.place = place

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.place),)


@pytest.fixture
def fake_cifar(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, np.ndarray]:
    """Two training batches and a test batch of three images each, in CIFAR-10's own format."""
    from torchvision.datasets import CIFAR10

    pixels = np.arange(9 * 3 * 32 * 32).reshape(3, 3, 3072).astype(np.uint8)
    folder = tmp_path / CIFAR10.base_folder
    folder.mkdir()

    def store(name: str, content: dict[str, Any]) -> list[str]:
        data = pickle.dumps(content, protocol=2)
        (folder / name).write_bytes(data)
        return [name, hashlib.md5(data).hexdigest()]

    names = ["data_batch_1", "data_batch_2", "test_batch"]
    listed = [
        store(name, {"data": part, "labels": [i, 5, 9]})
        for i, (name, part) in enumerate(zip(names, pixels, strict=True))
    ]
    _, md5 = store("batches.meta", {"label_names": [f"class {i}" for i in range(10)]})
    monkeypatch.setattr(CIFAR10, "train_list", listed[:2])
    monkeypatch.setattr(CIFAR10, "test_list", listed[2:])
    monkeypatch.setattr(
        CIFAR10, "meta", {"filename": "batches.meta", "key": "label_names", "md5": md5}
    )
    return tmp_path, pixels


def test_cifar10_keeps_channels_first(fake_cifar: tuple[Path, np.ndarray]) -> None:
    root, pixels = fake_cifar
    data = load("cifar10", root=root)
    found = torch.cat([data.train_x, data.test_x]).numpy() * 255
    assert np.allclose(found, pixels.reshape(9, 3, 32, 32), atol=1e-4)
    assert (data.train_y.tolist(), data.test_y.tolist()) == ([0, 5, 9, 1, 5, 9], [2, 5, 9])
    assert data.class_names[3] == "class 3"


@pytest.mark.parametrize("file", ["data_batch_1", "test_batch", "batches.meta"])
def test_cifar10_never_unpickles_an_unverified_file(
    fake_cifar: tuple[Path, np.ndarray], file: str
) -> None:
    root, _ = fake_cifar
    sprung = root / "sprung"
    (root / "cifar-10-batches-py" / file).write_bytes(pickle.dumps(Trap(sprung)))
    text = message(lambda: load("cifar10", root=root))
    assert f"{file} has the wrong checksum" in text
    assert not sprung.exists()


def test_svhn_values_and_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import scipy.io
    from torchvision.datasets import SVHN

    folder = tmp_path / "SVHN"
    folder.mkdir()
    pixels = np.arange(32 * 32 * 3 * 4).reshape(32, 32, 3, 4).astype(np.uint8)
    for split, count in (("train", 4), ("test", 2)):
        url, file, _ = SVHN.split_list[split]
        labels = np.array([[10], [1], [2], [9]], dtype=np.uint8)[:count]
        scipy.io.savemat(folder / file, {"X": pixels[..., :count], "y": labels})
        md5 = hashlib.md5((folder / file).read_bytes()).hexdigest()
        monkeypatch.setitem(SVHN.split_list, split, [url, file, md5])
    data = load("svhn", root=tmp_path)
    assert np.allclose(data.train_x.numpy() * 255, pixels.transpose(3, 2, 0, 1), atol=1e-4)
    assert data.train_y.tolist() == [0, 1, 2, 9]  # the file's label 10 is the digit 0
    damaged = folder / "test_32x32.mat"
    damaged.write_bytes(damaged.read_bytes()[:-1])
    assert f"svhn: {damaged} has the wrong checksum" in message(lambda: load("svhn", root=tmp_path))


# --- Downloads -----------------------------------------------------------------------------------


def test_download_fetches_once_then_verifies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    contents = [idx(array) for array in FAKE]
    paths = publish(monkeypatch, "mnist", contents)
    fetched = []

    def fetch(root: Path) -> None:
        fetched.append(root)
        write(root, paths, contents)

    read = datasets._PUBLISHED["mnist"].read
    monkeypatch.setitem(datasets._PUBLISHED, "mnist", datasets.Published(read, fetch))
    for _ in range(2):
        assert datasets.main(["mnist", "--root", str(tmp_path)]) == 0
        output = capsys.readouterr()
        assert output.out.count("\n") == 1
        assert f"6 train + 2 test, input 1x28x28, 10 classes) in {tmp_path}" in output.out
    assert fetched == [tmp_path]
    (tmp_path / paths[1]).write_bytes(contents[1][:-1])
    assert datasets.main(["mnist", "--root", str(tmp_path)]) == 2
    assert "is truncated, 13 of 14 bytes; delete it and run" in capsys.readouterr().err
    assert fetched == [tmp_path]  # a damaged file is never overwritten unasked


@pytest.mark.parametrize("failure", [OSError("no route\nto host"), RuntimeError("file corrupted")])
def test_failed_download_is_one_line(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    failure: Exception,
) -> None:
    def fetch(root: Path) -> None:
        raise failure

    read = datasets._PUBLISHED["svhn"].read
    monkeypatch.setitem(datasets._PUBLISHED, "svhn", datasets.Published(read, fetch))
    assert datasets.main(["svhn", "--root", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: could not download svhn into {tmp_path}: ")
    assert error.count("\n") == 1


def test_download_of_what_cannot_be(capsys: pytest.CaptureFixture[str]) -> None:
    assert datasets.main(["digits"]) == 0
    assert "nothing to download" in capsys.readouterr().out
    assert datasets.main(["imagenet"]) == 2
    assert "allowed: mnist, fashion-mnist, cifar10, svhn" in capsys.readouterr().err


# --- Folders of images ---------------------------------------------------------------------------


def save(path: Path, level: int, *, mode: str = "RGB", size: tuple[int, int] = (8, 6)) -> None:
    """Write an image of one grey level; size is (width, height)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", size, level).convert(mode).save(path)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """train/ and test/ with classes cat and dog; the grey level tells the image."""
    root = tmp_path / "pets"
    for split, base, count in (("train", 0, 4), ("test", 100, 2)):
        for label, name in enumerate(("cat", "dog")):
            for i in range(count):
                save(root / split / name / f"{i}.png", base + 10 * label + i)
    (root / "train" / "cat" / "notes.txt").write_text("not an image")
    (root / "train" / ".hidden").mkdir()
    return root


def levels(x: Tensor) -> list[int]:
    return (x[:, 0, 0, 0] * 255).round().int().tolist()


def test_folder_with_its_own_split(folder: Path) -> None:
    data = load(f"folder:{folder}")
    assert data.input_shape == (3, 6, 8)
    assert data.class_names == ("cat", "dog")
    assert levels(data.train_x) == [0, 1, 2, 3, 10, 11, 12, 13]
    assert data.train_y.tolist() == [0] * 4 + [1] * 4
    assert levels(data.test_x) == [100, 101, 110, 111]


def test_folder_name_holds_no_path_of_the_machine(folder: Path) -> None:
    data = load(f"folder:{folder}/")
    assert data.name == "folder:pets"
    assert str(folder.parent) not in repr(data)


def test_folder_without_split_is_split_by_seed(folder: Path) -> None:
    for i in range(4, 10):
        save(folder / "train" / "cat" / f"{i}.png", i)
    first, again, other = (load(f"folder:{folder}/train", seed=seed) for seed in (0, 0, 1))
    assert first.test_y.tolist() == [0, 0, 1]  # a fifth of 10, and at least one of 4
    assert sorted(levels(first.train_x) + levels(first.test_x)) == [*range(10), *range(10, 14)]
    assert first.sha256 == again.sha256
    assert levels(first.test_x) != levels(other.test_x)


def test_folder_resizes_and_mixes_grey_with_colour(folder: Path) -> None:
    save(folder / "train" / "cat" / "0.png", 77, mode="L", size=(20, 30))
    assert "all must be equal, or give size=N to resize them" in message(
        lambda: load(f"folder:{folder}")
    )
    data = load(f"folder:{folder}", size=5)
    assert data.input_shape == (3, 5, 5)
    assert torch.equal(data.train_x[0], torch.full((3, 5, 5), 77 / 255))


def test_folder_of_grey_images_has_one_channel(tmp_path: Path) -> None:
    for name in ("a", "b"):
        for i in range(2):
            save(tmp_path / name / f"{i}.png", 9 * i, mode="L")
    assert load(f"folder:{tmp_path}").input_shape == (1, 6, 8)


def test_jpeg_in_four_inks_becomes_colour(tmp_path: Path) -> None:
    for i in range(2):
        place = tmp_path / "a" / f"{i}.jpg"
        place.parent.mkdir(exist_ok=True)
        Image.new("CMYK", (8, 8), (0, 200, 200, 0)).save(place)
    assert load(f"folder:{tmp_path}").input_shape == (3, 8, 8)


@pytest.mark.parametrize("suffix", ["png", "jpg"])
@pytest.mark.parametrize(
    ("damage", "expected"),
    [
        (lambda content: content[: len(content) // 2], "is truncated or not an image"),
        (lambda content: b"", "is truncated or not an image"),
        (lambda content: PAGE, "is an HTML page saved as an image"),
    ],
    ids=["cut", "empty", "page"],
)
def test_folder_with_a_damaged_image(
    folder: Path, suffix: str, damage: Callable[[bytes], bytes], expected: str
) -> None:
    place = folder / "test" / "dog" / f"bad.{suffix}"
    Image.effect_noise((8, 6), 50).convert("RGB").save(place)
    place.write_bytes(damage(place.read_bytes()))
    text = message(lambda: load(f"folder:{folder}"))
    assert text == f"{place} {expected}; delete or replace it"


def test_folder_with_deep_image(folder: Path) -> None:
    deep = Image.fromarray(np.full((6, 8), 40000, dtype=np.uint16))
    deep.save(folder / "test" / "dog" / "deep.png")
    assert "more than 8 bits per channel" in message(lambda: load(f"folder:{folder}"))


def remove(*parts: str) -> Callable[[Path], None]:
    return lambda root: shutil.rmtree(root.joinpath(*parts))


def add_empty_class(root: Path) -> None:
    for split in ("train", "test"):
        (root / split / "bird").mkdir()


def empty_it(root: Path) -> None:
    remove("train")(root)
    remove("test")(root)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (empty_it, "is empty: it has no class folders; needed: CLASS/* with images"),
        (add_empty_class, "is empty: it has no images; allowed: .bmp"),
        (remove("test"), "has no test/; needed: train/ and test/, or neither"),
        (remove("train"), "has no train/; needed: train/ and test/, or neither"),
        (remove("test", "dog"), "must have the same classes; differing: dog"),
    ],
)
def test_folder_that_is_incomplete(
    folder: Path, change: Callable[[Path], None], expected: str
) -> None:
    change(folder)
    assert expected in message(lambda: load(f"folder:{folder}"))


def test_folder_requests_that_cannot_be(folder: Path) -> None:
    assert "is not a folder; needed: PATH/train/CLASS/*" in message(lambda: load("folder:"))
    assert "is not a folder" in message(lambda: load(f"folder:{folder}/nowhere"))
    assert "must be a whole number from 1 to 4096; got 0" in message(
        lambda: load(f"folder:{folder}", size=0)
    )
    save(folder / "test" / "bird" / "0.png", 5)
    assert "bird has 1 image; at least 2 are needed to split it" in message(
        lambda: load(f"folder:{folder}/test")
    )

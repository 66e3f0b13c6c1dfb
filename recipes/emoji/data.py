"""Download the captioned emoji sets and build one array file.

Three drawing styles (Noto, Fluent 3D, Twemoji) come from the npm registry by package name and version,
are checked by SHA-256, composited on white and resized to 64 x 64.  Run: ``python -m recipes.emoji.data``.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import subprocess
import tarfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

HERE = Path(__file__).parent
SIZE = 64
STYLES = ("noto", "fluent", "twemoji")  # the last one is never trained on
STYLE_WORDS = {"noto": "cartoon", "fluent": "3d"}
PACKAGES = {
    "emoji-datasource-google@16.0.0": "fb5fd131b362aab7a55542d2a147a79708cce0a8b1c1bbacd470172708b5c438",
    "emoji-datasource-twitter@16.0.0": "f64a530c63bca463bd8317fdc4615ce63a53a0c65018e4ce2d848aaba7a28877",
    "@lobehub/fluent-emoji-3d@1.1.0": "c1bb7eee7de090205a232518a9ab4adb3df458bfbe8a1f78232991194c8b2e58",
    "unicode-emoji-json@0.9.0": "ae7efacb55533385bf8767d613dbd36c71226669759d95919a6e9059f5e4c401",
    "emojilib@4.0.3": "7f9a6b43cff31d18985b7d65d11faba5bd971cbcc60020cf6d09322fbaaaf303",
}
SKIPPED_GROUPS = {"Flags"}


@dataclass(frozen=True)
class EmojiData:
    """All pictures with their words.

    ``images`` uint8 [N, 3 styles, 64, 64, 3] (white where a style lacks the emoji), ``present`` bool [N,
    3], ``names`` [N] strings, ``keywords`` N lists, ``train`` and ``heldout`` index arrays: the generator's
    concepts and the concepts that nothing is trained on.
    """

    images: NDArray[np.uint8]
    present: NDArray[np.bool_]
    names: list[str]
    keywords: list[list[str]]
    train: NDArray[np.int64]
    heldout: NDArray[np.int64]

    @property
    def seen(self) -> NDArray[np.int64]:
        """Indices of every concept that the autoencoder and the scorer may see."""
        return np.setdiff1d(np.arange(len(self.names)), self.heldout)


def read_list(path: Path) -> list[str]:
    """Return the lines of a word list, without comments and blanks."""
    lines = path.read_text(encoding="utf-8").splitlines()
    return [line.strip() for line in lines if line.strip() and not line.startswith("#")]


def fetch(raw: Path) -> dict[str, Path]:
    """Download what is missing with ``npm pack`` and check every archive; return package name -> archive."""
    raw.mkdir(parents=True, exist_ok=True)
    archives = {}
    for spec, digest in PACKAGES.items():
        name, version = spec.rsplit("@", 1)
        path = raw / f"{name.lstrip('@').replace('/', '-')}-{version}.tgz"
        if not path.exists():
            subprocess.run(["npm", "pack", spec], cwd=raw, check=True, stdout=subprocess.DEVNULL)
        found = hashlib.sha256(path.read_bytes()).hexdigest()
        if found != digest:
            raise ValueError(f"{path}: SHA-256 {found}, expected {digest}; delete the file and run again")
        archives[name] = path
    return archives


def read_pictures(archive: Path, folder: str) -> dict[str, bytes]:
    """Return file stem -> encoded bytes of every picture in ``folder`` of a tar archive."""
    pictures = {}
    with tarfile.open(archive) as tar:
        for member in tar:
            path = Path(member.name)
            if member.isfile() and str(path.parent) == folder:
                stream = tar.extractfile(member)
                if stream is not None:
                    pictures[path.stem] = stream.read()
    return pictures


def render(encoded: bytes) -> NDArray[np.uint8]:
    """Decode one picture, put it on white and scale it to [64, 64, 3] uint8."""
    with Image.open(io.BytesIO(encoded), formats=("PNG", "WEBP")) as opened:
        picture = opened.convert("RGBA")
    white = Image.new("RGBA", picture.size, (255, 255, 255, 255))
    white.alpha_composite(picture)
    flat = white.convert("RGB")
    if flat.size != (SIZE, SIZE):
        flat = flat.resize((SIZE, SIZE), Image.Resampling.LANCZOS)
    return np.asarray(flat)


def clean(name: str) -> str:
    """Write typographic quotes as ASCII."""
    return name.replace("\u2019", "'").replace("\u201c", '"').replace("\u201d", '"')


def build(work: Path) -> Path:
    """Build ``emoji64.npz`` and ``emoji64.json`` in ``work`` unless they are there; return the npz path."""
    target = work / "emoji64.npz"
    if target.exists():
        return target
    archives = fetch(work / "raw")
    sources = [
        read_pictures(archives["emoji-datasource-google"], "package/img/google/64"),
        read_pictures(archives["@lobehub/fluent-emoji-3d"], "package/assets"),
        read_pictures(archives["emoji-datasource-twitter"], "package/img/twitter/64"),
    ]
    with tarfile.open(archives["unicode-emoji-json"]) as tar:
        groups = json.load(tar.extractfile("package/data-by-group.json"))  # type: ignore[arg-type]
    with tarfile.open(archives["emojilib"]) as tar:
        words = json.load(tar.extractfile("package/dist/emoji-en-US.json"))  # type: ignore[arg-type]

    images, present, names, keywords = [], [], [], []
    for group in groups:
        if group["name"] in SKIPPED_GROUPS:
            continue
        for entry in group["emojis"]:
            code = "-".join(f"{ord(c):04x}" for c in entry["emoji"])
            bare = "-".join(part for part in code.split("-") if part != "fe0f")
            found = [source.get(code) or source.get(bare) for source in sources]
            if found[0] is None and found[1] is None:
                continue
            blank = np.full((SIZE, SIZE, 3), 255, np.uint8)
            images.append(np.stack([render(f) if f else blank for f in found]))
            present.append([f is not None for f in found])
            names.append(clean(entry["name"]))
            listed = [clean(w.replace("_", " ")) for w in words.get(entry["emoji"], [])]
            keywords.append([w for w in listed if w.isascii() and w[:1].isalpha() and w != names[-1]])
    work.mkdir(parents=True, exist_ok=True)
    (work / "emoji64.json").write_text(json.dumps({"names": names, "keywords": keywords}), encoding="utf-8")
    partial = work / "emoji64.partial.npz"
    np.savez_compressed(partial, images=np.stack(images), present=np.array(present))
    partial.rename(target)
    return target


def load(work: Path) -> EmojiData:
    """Build when needed, then load everything."""
    with np.load(build(work), allow_pickle=False) as arrays:
        images, present = arrays["images"], arrays["present"]
    words = json.loads((work / "emoji64.json").read_text(encoding="utf-8"))
    index = {name: i for i, name in enumerate(words["names"])}

    def indices(filename: str) -> NDArray[np.int64]:
        listed = read_list(HERE / filename)
        missing = [name for name in listed if name not in index]
        if missing:
            raise ValueError(f"{filename}: no such emoji: {missing}")
        return np.array([index[name] for name in listed])

    train, heldout = indices("concepts_train.txt"), indices("concepts_heldout.txt")
    if set(train) & set(heldout):
        raise ValueError("concepts_train.txt and concepts_heldout.txt overlap")
    return EmojiData(images, present, words["names"], words["keywords"], train, heldout)


def main() -> None:
    """Build the data and print its size."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, default=Path.home() / ".cache/pcpo/emoji")
    data = load(parser.parse_args().work)
    print(f"{len(data.names)} concepts, pictures per style {data.present.sum(0).tolist()}")
    print(f"{len(data.train)} generator concepts, {len(data.heldout)} held out")


if __name__ == "__main__":
    main()

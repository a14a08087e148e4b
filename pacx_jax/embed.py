"""Embeds every X-ray under a folder.

  python -m pacx_jax.embed --encoder=DIR --images=DIR --out=file.npz

The file holds `path` (n,), relative to the folder and sorted, and `embedding`
(n, width) float32.
"""

from __future__ import annotations

import argparse
import pathlib
import sys

import numpy as np
import tqdm

from pacx_jax import host_memory
from pacx_jax.encoder import load_encoder
from pacx_jax.types import PacxError

EXTENSIONS = (".jpg", ".jpeg", ".png")


def hidden(path: pathlib.Path) -> bool:
    """Whether it is a hidden file, or one that macOS puts into archives."""
    return any(part.startswith(".") or part == "__MACOSX" for part in path.parts)


def image_files(folder: str) -> list[pathlib.Path]:
    """Every JPEG and PNG file under a folder, sorted.

    Raises:
      PacxError: no such folder, or no images in it.
    """
    root = pathlib.Path(folder)
    if not root.is_dir():
        raise PacxError(f"--images {folder}: no such folder")
    files = sorted(
        p
        for p in root.rglob("*")
        if p.suffix.lower() in EXTENSIONS and not hidden(p.relative_to(root))
    )
    if not files:
        raise PacxError(
            f"--images {folder} holds no {', '.join(EXTENSIONS)} files: name a folder "
            "with X-rays"
        )
    return files


def embed_folder(
    encoder, folder: str, skip_unreadable: bool
) -> tuple[list[str], np.ndarray, list[str]]:
    """Paths, embeddings (n, width) and the messages of images that were skipped.

    Raises:
      PacxError: no such folder, no images in it, or, unless `skip_unreadable`, an
        image that cannot be read.
    """
    root, files = pathlib.Path(folder), image_files(folder)
    paths, skipped = [], []

    def readable():
        for file in tqdm.tqdm(
            files, desc="embed", unit="img", disable=not sys.stderr.isatty()
        ):
            try:
                image = encoder.preprocess(file)
            except PacxError as e:
                if not skip_unreadable:
                    raise
                skipped.append(str(e))
                continue
            paths.append(file.relative_to(root).as_posix())
            yield image

    return paths, encoder(readable()), skipped


def main(argv: list[str] | None = None) -> int:
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="pacx_jax.embed",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--encoder", required=True, help="exported folder or workdir")
    parser.add_argument("--images", required=True, help="folder of JPEG/PNG files")
    parser.add_argument("--out", required=True, help="the .npz file to write")
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument(
        "--skip_unreadable",
        action="store_true",
        help="list images that cannot be read and go on",
    )
    args = parser.parse_args(argv)
    host_memory.keep_freed()
    try:
        out = pathlib.Path(args.out)
        if out.suffix != ".npz":
            raise PacxError(f"--out {out}: name a file that ends in .npz")
        if args.batch_size < 1:
            raise PacxError(f"--batch_size {args.batch_size}: give at least 1")
        encoder = load_encoder(args.encoder, args.batch_size, args.dtype)
        paths, z, skipped = embed_folder(encoder, args.images, args.skip_unreadable)
        out.parent.mkdir(parents=True, exist_ok=True)
        temporary = out.with_name(out.name + ".tmp")
        with temporary.open("wb") as file:
            np.savez(file, path=np.array(paths, dtype=np.str_), embedding=z)
        temporary.replace(out)
    except (PacxError, OSError) as e:
        print(f"error: {' '.join(str(e).split())}", file=sys.stderr)
        return 2
    for message in skipped:
        print(f"skipped: {message}", file=sys.stderr)
    print(f"{len(paths)} embeddings of width {z.shape[1]} in {out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

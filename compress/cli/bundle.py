"""The commands on a bundle: predict, build, sign, and what ``niwaki doctor BUNDLE`` says. None of them needs torch."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from compress.cli.common import JsonFlag, say
from compress.cli.probe import Probe, probe_first
from compress.terminal import plain

if TYPE_CHECKING:
    from deploy.bundle.bundle import Bundle
    from deploy.errors import DeployError

BundleArgument = Annotated[Path, typer.Argument(help="A bundle folder.")]
TrustedKey = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="An Ed25519 public key (PEM): refuse a bundle that its owner did not sign."),
]
MinVersion = Annotated[
    int | None, typer.Option(min=0, help="Refuse a signed bundle whose manifest states a lower version.")
]


def predict(
    bundle: BundleArgument,
    images: Annotated[
        list[Path] | None, typer.Argument(help="Image files, or folders of them at any depth.", show_default=False)
    ] = None,
    rows: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="For a network with several inputs: one JSON object per line, from input names to files or numbers.",
        ),
    ] = None,
    threads: Annotated[int, typer.Option(min=1, max=1024, help="Threads that one run may use.")] = 1,
    runtime: Annotated[str | None, typer.Option(help="Runtime; by default the best on this machine.")] = None,
    precision: Annotated[str | None, typer.Option(help="Which of its models; by default the one it prefers.")] = None,
    trusted_key: TrustedKey = None,
    engine_key: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="This device's public key (PEM): also run engines signed by `niwaki build --key`."
        ),
    ] = None,
    min_version: MinVersion = None,
    as_json: JsonFlag = False,
) -> None:
    """Say what a bundle finds in images: classes, boxes or a mask; needs no torch."""
    import deploy
    from deploy.engines.cores import over_cores
    from deploy.errors import DeployError
    from deploy.processing.files import image_files

    if (images is None) == (rows is None):
        raise DeployError("Give images, or --rows FILE for a network with several inputs, and not both.")
    given: Sequence[Any] = image_files(images or []) if rows is None else _rows(rows)
    if (crowded := over_cores(threads)) is not None:
        say(crowded)
    with deploy.load(
        bundle,
        threads=threads,
        runtime=runtime,
        precision=precision,
        trusted_key=trusted_key,
        engine_key=engine_key,
        min_version=min_version,
    ) as engine:
        if rows is None and engine.manifest.inputs:
            named = ", ".join(engine.manifest.inputs)
            raise DeployError(f"{bundle} reads {named}; give --rows FILE with one JSON object of these names per line.")
        (found, bad), classes = _answers(engine, given), engine.classes
    if as_json:
        _print_json(found)
    else:
        for item in found:
            note = f" ({item['note']})" if "note" in item else ""
            print(plain(f"{item['file']}: {_found(item, classes)}{note}"))
    if bad:
        (first, why), *more = bad.items()
        others = f", nor could {', '.join(map(str, more))}" if more else ""
        raise DeployError(f"{first} could not be predicted ({str(why).rstrip('.')}){others}; all others were.")


def _print_json(found: Sequence[dict[str, Any]]) -> None:
    """Print what was found as one JSON list; a mask, rows of class indices, a row a line, never as one text."""
    print("[", end="")
    for place, item in enumerate(found):
        print("," if place else "")
        rest = json.dumps({name: value for name, value in item.items() if name != "mask"}, indent=1)
        if (mask := item.get("mask")) is None:
            print(rest, end="")
            continue
        print(rest.removesuffix("\n}"), end=',\n "mask": [')
        for row, values in enumerate(mask):
            print(f"{',' if row else ''}\n  {json.dumps(values.tolist())}", end="")
        print("\n ]\n}", end="")
    print("\n]")


_MOST_ROWS = 100_000


def _rows(path: Path) -> list[dict[str, Any]]:
    """Read a JSON object a line; the names of image files in it are those from its own folder on.

    Raises:
        DeployError: the file cannot be read, a line is no JSON object, or there are none or more than 100,000.
    """
    from deploy.errors import DeployError
    from deploy.files import read_bytes

    try:
        lines = read_bytes(path).decode().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise DeployError(
            f"Cannot read the rows of {path} ({why}); give a text file with one JSON object per line."
        ) from error
    found: list[dict[str, Any]] = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise DeployError(f"Line {number} of {path} is not JSON; write one object per line.") from error
        if not isinstance(row, dict):
            raise DeployError(f"Line {number} of {path} is a {type(row).__name__}; write one JSON object per line.")
        # No input takes a text but an image, so what is one is its file.
        found.append({name: path.parent / one if isinstance(one, str) else one for name, one in row.items()})
    if not 0 < len(found) <= _MOST_ROWS:
        raise DeployError(f"{path} holds {len(found)} rows; give 1 to {_MOST_ROWS}.")
    return found


def _answers(engine: Bundle, images: Sequence[Any]) -> tuple[list[dict[str, Any]], dict[str, DeployError]]:
    """Predict ``images`` together, or one by one where that fails.

    Returns:
        The answers, and the error of each image that has none.

    Raises:
        DeployError: none has one.
    """
    from deploy.errors import DeployError

    try:
        return engine.predict(images), {}
    except DeployError:
        found: list[dict[str, Any]] = []
        bad: dict[str, DeployError] = {}
        for place, image in enumerate(images, 1):
            try:
                found += engine.predict([image])
            except DeployError as error:
                bad[f"row {place}" if isinstance(image, dict) else str(image)] = error
        if not found:
            raise
        return found, bad


def build(
    bundle: BundleArgument,
    precision: Annotated[str | None, typer.Option(help="Which of its models; by default the one it prefers.")] = None,
    target: Annotated[
        str | None, typer.Option(metavar="smNN", help="Build for this compute capability instead of the GPU here.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Where it goes; by default into the bundle, which then uses it.")
    ] = None,
    runtime: Annotated[
        str | None, typer.Option(help="tensorrt or tensorrt_rtx; by default the one that is installed.")
    ] = None,
    largest: Annotated[int, typer.Option("--batch", min=1, max=4096, help="The largest batch.")] = 8,
    trusted_key: TrustedKey = None,
    key: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="This device's Ed25519 private key (PEM), to sign the engine with."),
    ] = None,
    probe: Probe = None,
    as_json: JsonFlag = False,
) -> None:
    """Build a TensorRT engine from a bundle's ONNX file, on the device or ahead of time; needs no torch."""
    import deploy
    from deploy.engines.sidecar import load_sidecar

    probe_first(bundle, probe, precision=precision)
    path = deploy.build_engine(
        bundle,
        precision=precision,
        target=target,
        out=out,
        runtime=runtime,
        largest=largest,
        trusted_key=trusted_key,
        key=key,
    )
    made = load_sidecar(path)
    if as_json:
        print(json.dumps({"path": str(path), **made.model_dump(mode="json")}, indent=1))
    else:
        about = f"{made.precision} for {made.target}, {made.bytes / 1e6:.2f} MB in {made.build_seconds:.1f} s"
        print(plain(f"{path}: {about}"))


def sign(
    bundle: BundleArgument,
    key: Annotated[Path, typer.Option(metavar="FILE", help="An Ed25519 private key (PEM).")],
    version: Annotated[int | None, typer.Option(min=0, help="The bundle's version, for --min-version.")] = None,
    expires: Annotated[
        str | None, typer.Option(metavar="DATE", help="Date from which it is refused, such as 2027-12-31 (UTC).")
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Sign a bundle, so that predict and build with --trusted-key take no other."""
    import deploy

    path = deploy.sign(bundle, key, version=version, expires=expires)
    print(json.dumps({"signature": str(path)}) if as_json else plain(path))


def verify(
    bundle: BundleArgument,
    key: Annotated[Path, typer.Option(metavar="FILE", help="The Ed25519 public key (PEM) of its signer.")],
    min_version: MinVersion = None,
    as_json: JsonFlag = False,
) -> None:
    """Check a bundle's signature against a key, and its files against their hashes; nothing is loaded."""
    import deploy

    manifest = deploy.verify(bundle, key, min_version=min_version)
    expires = None if manifest.expires is None else manifest.expires.isoformat()
    if as_json:
        said = {"bundle": str(bundle), "version": manifest.version, "expires": expires}
        print(json.dumps(said | {"files": {item.file: item.sha256 for item in manifest.files}}, indent=1))
        return
    version = "no version" if manifest.version is None else f"version {manifest.version}"
    until = "no expiry" if expires is None else f"expires {expires}"
    print(plain(f"{bundle} is as the owner of {key} signed it: {len(manifest.files)} files, {version}, {until}."))


def describe(bundle: Path) -> dict[str, Any]:
    """Return what a bundle is, what runs it here and why, for ``niwaki doctor BUNDLE``; raise what loading raises."""
    import deploy
    from deploy.bundle.engines import engines_folder
    from deploy.onnx.metadata import Metadata

    with deploy.load(bundle) as loaded:
        said = loaded.manifest
        own = Metadata.from_file(bundle / said.models[said.default].file)
        return {
            "bundle": str(bundle),
            "task": said.task,
            "inputs": [f"{name} ({one.kind})" for name, one in said.inputs.items()],
            "models": sorted(said.models),
            "default": said.default,
            "version": said.version,
            "expires": None if said.expires is None else said.expires.isoformat(),
            "licence": said.licence,
            "weights": None if said.weights is None else said.weights.source,
            "weights_sha256": own.weights_sha256,
            "engines": sorted(path.name for path in engines_folder(bundle).glob("*.engine")),
            "runtime": loaded.runtime,
            "precision": loaded.precision,
            "file": None if loaded.path is None else str(loaded.path.relative_to(bundle)),
            "why": loaded.why,
        }


def _found(item: dict[str, Any], classes: Sequence[str]) -> str:
    """Say one image's prediction in a line."""
    if "boxes" in item:
        rows = [f"{b['class']} ({100 * b['score']:.1f} %) at {[round(v) for v in b['box']]}" for b in item["boxes"]]
        return "; ".join(rows) or "nothing"
    if "mask" in item:
        import numpy as np

        indices, counts = np.unique(item["mask"], return_counts=True)
        names = [classes[i] if i < len(classes) else "unseen" for i in indices]
        return ", ".join(
            f"{name} on {100 * c / item['mask'].size:.1f} %" for name, c in zip(names, counts, strict=True)
        )
    return f"{item['class']} ({100 * item['probability']:.1f} %)"

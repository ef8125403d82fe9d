"""The commands on a network's files: export, quantize and compare. Only export needs torch."""

from __future__ import annotations

import json
import warnings
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from compress.cli.common import ForceFlag, JsonFlag, QuietFlag, need, remark_untrained, search_here, unused
from compress.terminal import Terminal, plain

if TYPE_CHECKING:
    from collections.abc import Iterator

    import numpy as np

    from deploy.bench.comparing import Comparison
    from deploy.engines.base import Engine
    from deploy.processing.preprocess import Preprocessing
    from deploy.quantization.agreement import Agreement

ImagesArgument = Annotated[list[Path], typer.Argument(help="Images, or folders of them.")]
SizeOption = Annotated[
    int | None, typer.Option(min=1, max=4096, help="Height and width, if the file states no preprocessing.")
]
MeanOption = Annotated[
    str | None, typer.Option(metavar="M,M,M", help="Mean of each channel, if the file states no preprocessing.")
]
StdOption = Annotated[
    str | None, typer.Option(metavar="S,S,S", help="Deviation of each channel, if the file states no preprocessing.")
]
LIMIT = 1e-4
"""The largest relative error of an fp32 file against torch that ``export`` lets pass."""


def export(
    model: Annotated[str, typer.Argument(help="torchvision:NAME, niwaki:NAME, module:function, or a saved network.")],
    out: Annotated[Path | None, typer.Option(help="The ONNX file; NAME.fp32.onnx by default.")] = None,
    force: ForceFlag = False,
    weights: Annotated[str | None, typer.Option(help="Weights to load: DEFAULT or a file.")] = None,
    size: Annotated[int | None, typer.Option(min=1, max=4096, help="Height and width of the images.")] = None,
    task: Annotated[str | None, typer.Option(help="classification, detection or segmentation.")] = None,
    opset: Annotated[int | None, typer.Option(min=1, help="The ONNX operator set; 18 by default.")] = None,
    runtime: Annotated[
        list[str] | None,
        typer.Option(
            "--for", metavar="RUNTIME", help="A runtime that must read the file, such as openvino; repeatable."
        ),
    ] = None,
    dynamic_size: Annotated[bool, typer.Option("--dynamic-size", help="Leave height and width free.")] = False,
    in_graph: Annotated[bool, typer.Option("--in-graph", help="Decode boxes or classes in the file itself.")] = False,
    trust: Annotated[
        list[str] | None, typer.Option(metavar="MODULE", help="Your own code that may be imported; repeatable.")
    ] = None,
    quiet: QuietFlag = False,
    as_json: JsonFlag = False,
) -> None:
    """Write a network as an fp32 ONNX file and prove that it computes what torch does; exit 1 if it does not."""
    need("export", ("torch", "torchvision", "onnx", "onnxscript", "safetensors"))
    search_here()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from compress.cli.exporting import exported

        with Terminal(stderr=True, quiet=quiet).status(f"Exporting {escape(model)}"):
            done = exported(
                model,
                out,
                force=force,
                size=size,
                trust=tuple(trust or ()),
                weights=weights,
                task=task,
                settings={"opset": opset, "runtimes": tuple(runtime or ()), "dynamic_size": dynamic_size},
                in_graph=in_graph,
            )
    remark_untrained(model, weights, quiet=quiet)
    if as_json:
        print(json.dumps(done, indent=1))
    elif not quiet:
        print(
            plain(
                f"{done['file']}: {done['bytes'] / 1e6:.2f} MB, opset {done['opset']}, torch = ONNX Runtime within "
                f"{done['max_relative_error']:.0e}"
            )
        )
    if done["max_relative_error"] > LIMIT:
        Terminal(stderr=True).print(f"differs from torch by more than {LIMIT:g}", style="bold red")
        raise typer.Exit(1)


def quantize(
    file: Annotated[Path, typer.Argument(help="An fp32 ONNX file.")],
    images: ImagesArgument,
    out: Annotated[Path | None, typer.Option(help="The new file; NAME.int8.onnx by default.")] = None,
    force: ForceFlag = False,
    precision: Annotated[str, typer.Option(help="int8 or fp16.")] = "int8",
    keep: Annotated[
        list[str] | None, typer.Option(metavar="KIND", help="Operators left in fp32, such as depthwise; repeatable.")
    ] = None,
    fastest: Annotated[bool, typer.Option("--fastest", help="Find by timing which operators stay in fp32.")] = False,
    count: Annotated[int, typer.Option("--images", min=1, max=10_000, help="How many images are used.")] = 300,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the choice of images.")] = 0,
    size: SizeOption = None,
    mean: MeanOption = None,
    std: StdOption = None,
    quiet: QuietFlag = False,
    as_json: JsonFlag = False,
) -> None:
    """Quantise an fp32 ONNX file on your own images and say how far it is from fp32; needs no torch."""
    need("quantize", ("onnx", "nncf") if precision == "int8" else ("onnx", "onnxconverter_common"), "quantization")
    from deploy.errors import DeployError
    from deploy.onnx.wire import bytes_on_disk, scan
    from deploy.processing.files import drawn, image_files, prepared
    from deploy.quantization.agreement import Agreement

    if fastest and (precision != "int8" or keep):
        raise DeployError("--fastest decides itself what stays in fp32; leave out --keep and --precision fp16.")
    target = _target(file, out, precision, force=force)
    console = Terminal(stderr=True, quiet=quiet)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        preprocessing = _preprocessing(file, size, mean, std)
        paths = drawn(image_files(images), count, seed)
        with console.status(f"Preparing {len(paths)} images"):
            arrays = prepared(paths, preprocessing)
        # A fifth is not calibrated on and tells whether the ranges hold for other images.
        held_out = [] if fastest or len(arrays) < 10 else arrays[::5]
        arrays = [one for k, one in enumerate(arrays) if not held_out or k % 5]
        with console.status(f"Quantising to {precision}") as status:
            asked = {"keep": keep or [], "fastest": fastest, "tell": lambda doing: status.update(f"int8: {doing}")}
            said = _quantized((file, target), arrays, held_out, precision, asked)
        found = Agreement.read(target)
    about = {
        "file": str(target),
        "bytes": target.stat().st_size,
        "fp32_bytes": bytes_on_disk(file, scan(file).outside),
        "calibration_images": len(arrays),
        "held_out_images": len(held_out),
        "agreement": None if found is None else found.agreement,
        "snr_db": None if found is None else found.snr_db,
        **said,
    }
    if as_json:
        print(json.dumps(about, indent=1))
    elif not quiet:
        share = f"{about['bytes'] / 1e6:.2f} MB of {about['fp32_bytes'] / 1e6:.2f}"
        agrees = "" if found is None else f", {_agreeing(found, len(arrays), len(held_out))}"
        kept = f"; {said['kept']}" if said else ""
        print(plain(f"{target}: {share}{agrees}{kept}"))


def _target(file: Path, out: Path | None, precision: str, *, force: bool) -> Path:
    """Where the new file goes; raise DeployError where that is the one it is made of, or one that is to stay."""
    from deploy.errors import DeployError

    target = out or file.with_name(f"{file.name.removesuffix('.onnx').removesuffix('.fp32')}.{precision}.onnx")
    if target.resolve() == file.resolve():
        raise DeployError(f"{file} would be replaced by what is made of it; name another file by --out.")
    return unused(target, force=force)


def _agreeing(found: Agreement, calibrated: int, held_out: int) -> str:
    """Say how near int8 is to fp32, and on which images."""
    from deploy.quantization.agreement import MOST_IMAGES, grade

    # Both are the first so many of those that there are.
    images = f"{min(calibrated, MOST_IMAGES)} images of the calibration"
    if held_out:
        images = f"{min(held_out, MOST_IMAGES)} held-out images or of {images}, whichever are worse,"
    agrees = f"agrees with fp32 on {100 * found.agreement:.1f} % of {images} at {found.snr_db:.1f} dB"
    return f"{agrees}, {grade(found.snr_db)}"


def _quantized(
    files: tuple[Path, Path],
    arrays: list[np.ndarray],
    held_out: list[np.ndarray],
    precision: str,
    asked: dict[str, Any],
) -> dict[str, Any]:
    """Write the file; return what a search for the fastest one found."""
    import deploy
    from deploy.quantization.search import fastest_int8

    src, dst = files
    if asked["fastest"]:
        return {"kept": str(fastest_int8(src, dst, arrays, tell=asked["tell"]))}
    options = {"keep_fp32": tuple(asked["keep"])} if precision == "int8" else {}
    deploy.quantize(src, dst, arrays, precision=precision, held_out=held_out or None, **options)
    return {}


def compare(
    first: Annotated[Path, typer.Argument(help="An ONNX file, an engine or a bundle: the reference.")],
    second: Annotated[Path, typer.Argument(help="The one to compare with it.")],
    images: ImagesArgument,
    runtime: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="Runtime of both; twice, of the first and second.")
    ] = None,
    count: Annotated[int, typer.Option("--images", min=1, max=1_000_000, help="How many images are used.")] = 1000,
    least: Annotated[
        float | None,
        typer.Option("--least-agreement", min=0.0, max=1.0, help="Exit 1 below this share of equal predictions."),
    ] = None,
    least_snr: Annotated[
        float | None, typer.Option(metavar="DB", help="Exit 1 below this signal-to-noise ratio.")
    ] = None,
    size: SizeOption = None,
    mean: MeanOption = None,
    std: StdOption = None,
    quiet: QuietFlag = False,
    as_json: JsonFlag = False,
) -> None:
    """Compare two engines on your own images: agreement, signal-to-noise ratio, and where they differ."""
    from deploy.bench.comparing import compare as compared
    from deploy.processing.files import drawn, image_files

    runtimes = [*(runtime or []), *[None] * 2][:2] if len(runtime or []) != 1 else [runtime[0]] * 2  # type: ignore[index]
    with ExitStack() as stack:
        engines, named = [], []
        for path, which in zip((first, second), runtimes, strict=True):
            engine, own = _opened(path, which)
            engines.append(stack.enter_context(engine))
            named += [(path, own)] if own else []
        classes = _same_classes(named)
        files = drawn(image_files(images), count, 0)
        prepare = _both((first, second), size, mean, std)
        console = Terminal(stderr=True, quiet=quiet)
        with console.status(f"Comparing on {len(files)} images"):
            found = compared(engines[0], engines[1], _fed(files, prepare), classes)
    if as_json:
        print(found.model_dump_json(indent=1))
    elif not quiet:
        _show(found)
    if (least is not None and (found.agreement is None or found.agreement < least)) or (
        least_snr is not None and min(found.snr_db.values()) < least_snr
    ):
        raise typer.Exit(1)


def _opened(path: Path, runtime: str | None) -> tuple[Engine, tuple[str, ...]]:
    """Open a file or a bundle; its engine under the path's name, and its classes where it names them."""
    import deploy
    from deploy.engines import load_engine
    from deploy.errors import DeployError
    from deploy.onnx.metadata import Metadata

    classes: tuple[str, ...] = ()
    if path.is_dir():
        engine: Engine = deploy.load(path, runtime=runtime)
        classes = engine.classes  # type: ignore[attr-defined]
    else:
        engine = load_engine(path, runtime=runtime)
        if path.suffix == ".onnx":
            classes = Metadata.from_file(path).classes or ()
    engine.name = str(path)
    if len(engine.inputs) != 1:
        engine.close()
        raise DeployError(f"{path} has {len(engine.inputs)} inputs; only engines on images can be compared.")
    return engine, classes


def _same_classes(named: list[tuple[Path, tuple[str, ...]]]) -> tuple[str, ...]:
    """Return the classes' names; raise DeployError where the two call their outputs differently."""
    from deploy.errors import DeployError

    if len(named) == 2:
        (first, ours), (second, theirs) = named
        for place, (one, other) in enumerate(zip(ours, theirs, strict=False)):
            if one != other:
                raise DeployError(
                    f"Class {place} is {one!r} in {first} and {other!r} in {second}; compare networks of the same "
                    "classes in the same order."
                )
    return named[0][1] if named else ()


def _fed(
    files: list[Path], prepare: tuple[Preprocessing, Preprocessing]
) -> Iterator[tuple[Path, np.ndarray, np.ndarray]]:
    for file in files:
        own = prepare[0](prepare[0].load(file))
        yield file, own, own if prepare[0] == prepare[1] else prepare[1](prepare[1].load(file))


def _both(
    paths: tuple[Path, Path], size: int | None, mean: str | None, std: str | None
) -> tuple[Preprocessing, Preprocessing]:
    """How images are prepared for each of two engines; one that states nothing takes what the other states."""
    from deploy.errors import DeployError

    stated = [_stated(path) for path in paths]
    given = _given(size, mean, std)
    first, second = (own or given or next((one for one in stated if one), None) for own in stated)
    if first is None or second is None:
        raise DeployError(
            f"Neither {paths[0]} nor {paths[1]} states how images are prepared; give --size, --mean and --std."
        )
    return first, second


def _preprocessing(path: Path, size: int | None, mean: str | None, std: str | None) -> Preprocessing:
    """How images are prepared for a file: as it states, else as the options say."""
    from deploy.errors import DeployError

    stated, given = _stated(path), _given(size, mean, std)
    if stated is not None and given is not None and stated != given:
        raise DeployError(f"{path} states its preprocessing itself; leave out --size, --mean and --std.")
    found = stated or given
    if found is None:
        raise DeployError(f"{path} does not state how images are prepared; give --size, --mean and --std.")
    return found


def _stated(path: Path) -> Preprocessing | None:
    from deploy.bundle.manifest import read_manifest
    from deploy.onnx.metadata import Metadata

    if path.is_dir():
        return read_manifest(path).preprocessing
    return Metadata.from_file(path).preprocessing if path.suffix == ".onnx" else None


def _given(size: int | None, mean: str | None, std: str | None) -> Preprocessing | None:
    """What the options say; None where none is given.

    Raises:
        DeployError: only some are given, or they are no numbers.
    """
    from pydantic import ValidationError

    from compress.validation import explain
    from deploy.errors import DeployError
    from deploy.processing.preprocess import Preprocessing

    if size is mean is std is None:
        return None
    if size is None or mean is None or std is None:
        raise DeployError("Of --size, --mean and --std only some are given; give all three, or none.")
    try:
        values = [tuple(float(part) for part in text.split(",")) for text in (mean, std)]
        given = {"size": (size, size), "mean": values[0], "std": values[1], "resize": "shorter_side_center_crop"}
        return Preprocessing.model_validate({**given, "mode": "L" if len(values[0]) == 1 else "RGB"})
    except ValidationError as error:
        raise DeployError(f"{explain(error)}; correct --size, --mean or --std.") from None
    except ValueError:
        raise DeployError(
            f"--mean {mean!r} and --std {std!r} are not numbers with commas between; give 0.5,0.5,0.5."
        ) from None


def _show(found: Comparison) -> None:
    """Print a comparison: the figures, and the images for which the two part."""
    console = Terminal()
    agreement = "no classes" if found.agreement is None else f"{100 * found.agreement:.2f} % agree"
    figures = ", ".join(f"{name} {value:.1f} dB" for name, value in found.snr_db.items())
    console.print(
        f"{found.second} against {found.first}: {agreement} on {found.images} images; {figures}; largest error "
        f"{found.max_relative_error:.1e} of the largest output; worst {found.worst[0]} at {found.worst[1]:.1f} dB",
        soft_wrap=True,
        markup=False,
    )
    if not found.parted:
        return
    title = "Where they differ (lead: how far a class's output is above the next one's)"
    shown = Table("image", "first says", "lead", "second says", "lead", title=title, title_justify="left")
    for one in found.parted[:20]:
        cells = (one.file, one.first, f"{one.first_lead:.3g}", one.second, f"{one.second_lead:.3g}")
        shown.add_row(*map(escape, cells))
    console.print(shown)
    if len(found.parted) > 20:
        console.print(f"and {len(found.parted) - 20} more (--json lists all)")

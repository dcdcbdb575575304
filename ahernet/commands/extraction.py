"""The command `extract`."""

import math
from pathlib import Path
from typing import TYPE_CHECKING

from jsonargparse import ArgumentParser, Namespace

from ahernet.commands.command import Command, add_device, add_log
from ahernet.errors import UserError
from ahernet.event_log import say_result, warn
from ahernet.files import make_folder

if TYPE_CHECKING:
    from ahernet.extraction.extract import ExtractionSettings

CPU_BATCH, GPU_BATCH = 8, 64
PART_VIDEOS = 500


def _add_extract(parser: ArgumentParser) -> None:
    parser.add_argument("videos", type=Path, nargs="+", metavar="VIDEO", help="video files, or folders of them")
    parser.add_argument(
        "--out",
        type=Path,
        required=True,
        metavar="PATH",
        help="feature archive to write (.h5); a name without suffix is a folder of archives, for very many videos",
    )
    parser.add_argument(
        "--backbone",
        default="p3d199-caffe",
        metavar="NAME",
        help="p3d199-caffe, p3d199-port, or MODULE:NAME for one that your module registers (default: p3d199-caffe)",
    )
    parser.add_argument(
        "--weights", type=Path, metavar="FILE", help=".safetensors, or what torch saved (default: random, for trying)"
    )
    parser.add_argument(
        "--ids", type=Path, metavar="CSV", help="table with columns file and id (default: ids are file names)"
    )
    parser.add_argument("--clip-stride", type=int, default=8, metavar="FRAMES", help="from clip to clip (default: 8)")
    parser.add_argument(
        "--batch-size",
        type=int,
        metavar="CLIPS",
        help=f"that the network computes at a time (default: {CPU_BATCH} on a CPU, {GPU_BATCH} on a GPU)",
    )
    parser.add_argument("--workers", type=int, default=4, metavar="VIDEOS", help="decoded at a time (default: 4)")
    parser.add_argument(
        "--decode-on",
        default="cpu",
        metavar="NAME",
        help="cpu, or a device that FFmpeg decodes on, such as cuda (default: cpu)",
    )
    parser.add_argument(
        "--arithmetic", choices=("float32", "bfloat16"), default="float32", help="of the network (default: float32)"
    )
    parser.add_argument(
        "--dtype", choices=("float16", "float32"), default="float16", help="of the archive (default: float16)"
    )
    parser.add_argument(
        "--on-error",
        choices=("stop", "skip"),
        default="stop",
        help="what to do with a video that is of no use: stop, or skip and list it (default: stop)",
    )
    add_device(parser)
    add_log(parser)
    parser.add_argument(
        "--part-videos", type=int, metavar="VIDEOS", help=f"of an archive in a folder (default: {PART_VIDEOS})"
    )
    parser.add_argument(
        "--engine",
        choices=("local", "ray"),
        help="what makes the archives of a folder: this process, or the Ray cluster at RAY_ADDRESS (default: local)",
    )
    parser.add_argument("--actors", type=int, metavar="NUMBER", help="of the cluster, at work at a time (default: 1)")


def _run_extract(parsed: Namespace) -> None:
    into_folder = parsed.out.is_dir() or not parsed.out.suffix
    _check_extract_options(parsed, into_folder)

    from ahernet.extraction.video_files import find_videos

    videos = find_videos(parsed.videos, parsed.ids)
    if parsed.out.resolve() in {video.resolve() for video in videos.values()}:
        raise UserError(f"extract: --out {parsed.out}: is one of the videos, expected another name")

    from ahernet.device import choose_device
    from ahernet.extraction.backbones import find_backbone
    from ahernet.extraction.extract import ExtractionSettings

    backbone = find_backbone(parsed.backbone)
    if parsed.weights is None:
        warn(
            f"extract: without --weights {backbone.name} is initialised at random (always the same): "
            "its features are for testing the pipeline only"
        )
    settings = ExtractionSettings(
        clip_stride=parsed.clip_stride,
        batch_size=parsed.batch_size or (CPU_BATCH if choose_device(parsed.device).type == "cpu" else GPU_BATCH),
        workers=parsed.workers,
        dtype=parsed.dtype,
        on_error=parsed.on_error,
    )
    (_extract_into_folder if into_folder else _extract_into_file)(parsed, videos, settings)


def _check_extract_options(parsed: Namespace, into_folder: bool) -> None:
    """Check what can be checked before anything large is imported or looked for."""
    for name in ("part_videos", "engine", "actors"):
        if parsed[name] is not None and not into_folder:
            option = name.replace("_", "-")
            raise UserError(f"extract: --{option} is for a folder of archives, --out names a file: {parsed.out}")
    for name in ("clip_stride", "batch_size", "workers", "part_videos", "actors"):
        if parsed[name] is not None and parsed[name] < 1:
            raise UserError(f"extract: --{name.replace('_', '-')}: expected at least 1, got {parsed[name]}")

    from ahernet.data.archive_writer import check_archive_name, check_description

    if not into_folder:
        check_archive_name(parsed.out)
    check_description(math.nan, parsed.clip_stride or 0, "")


def _extract_into_folder(parsed: Namespace, videos: dict[str, Path], settings: "ExtractionSettings") -> None:
    from ahernet.extraction.parts import PartsJob, extract_parts

    job = PartsJob(
        videos,
        parsed.out,
        parsed.backbone,
        parsed.weights,
        parsed.arithmetic,
        _decoding_device(parsed),
        parsed.device,
        settings,
        parsed.part_videos or PART_VIDEOS,
    )
    parts = extract_parts(job, engine=parsed.engine or "local", actors=parsed.actors or 1)
    say_result(str(parts), out=parts.folder, videos=parts.videos, missing=parts.missing, unfinished=parts.unfinished)


def _extract_into_file(parsed: Namespace, videos: dict[str, Path], settings: "ExtractionSettings") -> None:
    from ahernet.extraction.backbones import find_backbone
    from ahernet.extraction.extract import extract
    from ahernet.extraction.network import ClipNetwork
    from ahernet.extraction.pyav_decoder import PyAVDecoder

    decoder = PyAVDecoder(_decoding_device(parsed))
    network = ClipNetwork(find_backbone(parsed.backbone), parsed.weights, parsed.device, parsed.arithmetic)
    make_folder(parsed.out.parent)
    report = extract(videos, parsed.out, network, decoder, settings)
    say_result(
        str(report),
        out=report.path,
        videos=report.videos,
        rows=report.rows,
        remarks=report.remarks,
        skipped=report.skipped,
    )


def _decoding_device(parsed: Namespace) -> str | None:
    """A device that FFmpeg knows, None for the CPU."""
    return None if parsed.decode_on == "cpu" else str(parsed.decode_on)


COMMANDS = {
    "extract": Command(
        help="make a feature archive of videos",
        description=(
            "Decode videos, compute features of their clips with a convolutional network, and make a feature archive.\n"
            "Killed at any moment, the same command goes on where it was."
        ),
        usage="VIDEO... --out PATH [options]",
        example="videos --out archive.h5 --backbone p3d199-port --weights p3d_rgb_199.checkpoint.pth.tar",
        add_arguments=_add_extract,
        run=_run_extract,
    ),
}

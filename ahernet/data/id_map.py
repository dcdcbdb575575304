"""Tables that say which video a name in someone else's files means."""

import csv
import io
from pathlib import Path

from ahernet.data.annotations import read_text
from ahernet.data.archive_writer import check_video_id
from ahernet.errors import UserError

HEADER = ["name", "video"]


def read_id_map(path: Path) -> dict[str, str]:
    """Read a CSV file of two columns, the name in the source and the video id, plain or gzip-compressed.

    A first line `name,video` is a header. Spaces count; names with commas or quotes are quoted as in all CSV.

    Raises:
        UserError: the file is unreadable or empty, a line has not two fields, a name or an id occurs twice, or
            an archive cannot hold an id.
    """
    ids: dict[str, str] = {}
    lines = csv.reader(io.StringIO(read_text(path), newline=""), strict=True)
    try:
        for fields in lines:
            if not fields or (lines.line_num == 1 and fields == HEADER):
                continue
            if len(fields) != 2:
                raise UserError(f"{path}: line {lines.line_num} has {len(fields)} fields, expected name and video id")
            name, video_id = fields
            check_video_id(video_id)
            if name in ids:
                raise UserError(f"{path}: line {lines.line_num} names {name!r} again, expected it once")
            ids[name] = video_id
    except csv.Error as error:
        raise UserError(f"{path}: line {lines.line_num} is no CSV ({error}), expected name and video id") from error
    if not ids:
        raise UserError(f"{path}: holds no names, expected lines of name and video id")
    if len(set(ids.values())) < len(ids):
        first: dict[str, str] = {}
        name, video_id = next((n, v) for n, v in ids.items() if first.setdefault(v, n) != n)
        raise UserError(f"{path}: {first[video_id]!r} and {name!r} are both to be video {video_id!r}")
    return ids

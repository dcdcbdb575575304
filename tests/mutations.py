"""Break the kernels on purpose, one place at a time, and see whether the contract tests notice.

Run as `python tests/mutations.py [--only nms] [--jobs 2]`. Each mutant is a copy of `kernels/` and `tests/` in a
temporary folder with one text replaced; its contract tests run there, in Triton's interpreter for what a GPU
would run and without it for the CPU paths. A mutant that no test kills points at a behaviour that no test pins.
The exit status is 1 if a mutant survived, 2 if a text to replace is no longer found exactly once or if the tests
fail without any mutation.

What the interpreter cannot show is not listed: barriers, `div_rn` against `/`, casts of addresses, values loaded
by masked lanes, and NaN in a minimum or maximum, which Triton's interpreter passes on and a GPU drops. Neither are
mutants that compute the same.
"""

import argparse
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = Path("kernels") / "ahernet_kernels"
CONTRACTS = Path("tests") / "kernels" / "contracts"
SECONDS = 240  # a mutant that loops for ever is noticed, too
WITHOUT_SHRINKING = """
hypothesis.settings.register_profile(
    "mutants", parent=hypothesis.settings(), phases=[hypothesis.Phase.explicit, hypothesis.Phase.generate]
)
hypothesis.settings.load_profile("mutants")
"""  # that a test fails is enough: the smallest example is not asked for


@dataclass(frozen=True)
class Mutant:
    """One text of one file replaced by another."""

    op: str
    on_gpu: bool
    file: str
    old: str
    new: str
    tests: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.op} {'gpu' if self.on_gpu else 'cpu'}  {self.file}: {self.old.strip()!r} -> {self.new.strip()!r}"


def mutants_of(
    op: str, on_gpu: bool, file: str, *replacements: tuple[str, str], tests: tuple[str, ...] = ()
) -> list[Mutant]:
    """The mutants of one file; `tests` are names of contract test files, that of the op unless given."""
    return [Mutant(op, on_gpu, file, old, new, tests or (op,)) for old, new in replacements]


MUTANTS = [
    # What every op shares.
    *mutants_of(
        "tiou", True, "_tiou.py",
        ("intersection = tl.maximum(tl.minimum(end_a, end_b) - tl.maximum(start_a, start_b), 0.0)",
         "intersection = tl.minimum(end_a, end_b) - tl.maximum(start_a, start_b)"),
        ("return intersection, lengths - intersection\n\n\n@triton", "return intersection, lengths\n\n\n@triton"),
        ("return tl.where(union > 0, tl.div_rn(intersection, tl.where(union > 0, union, 1.0)), 0.0)",
         "return tl.div_rn(intersection, union)"),
        tests=("pairwise_tiou", "match"),
    ),
    *mutants_of(
        "tiou", False, "_tiou.py",
        ("np.maximum(intersection - np.maximum(start_a, start_b), 0)",
         "np.asarray(intersection - np.maximum(start_a, start_b))"),
        ("return intersection, lengths - intersection\n\n\ndef", "return intersection, lengths\n\n\ndef"),
        ("tiou = torch.minimum(a_end, b_end)", "tiou = torch.maximum(a_end, b_end)"),
        ("(a_end - a_start).clamp_(min=0) +", "(a_end - a_start) +"),
        ("+ (b_end - b_start).clamp_(min=0)", "+ (b_end - b_start)"),
        tests=("pairwise_tiou", "match"),
    ),
    *mutants_of(
        "tiou", True, "_tiou.py",
        ("lengths = tl.maximum(end_a - start_a, 0.0) +", "lengths = end_a - start_a +"),
        tests=("nms",),
    ),
    *mutants_of(
        "tiou", False, "_tiou.py",
        ("np.maximum(end_a - start_a, 0) +", "(end_a - start_a) +"),
        tests=("nms",),
    ),
    *mutants_of(
        "rank", True, "_rank.py",
        ("bits = (value + 0.0).to(", "bits = value.to("),
        ("> MIN_SCORE_BITS) & (score == score)", ">= MIN_SCORE_BITS) & (score == score)"),
        ("> MIN_SCORE_BITS) & (score == score)", "> MIN_SCORE_BITS)"),
        ("finite = (tl.abs(start) <= FLOAT_MAX) & (tl.abs(end) <= FLOAT_MAX)", "finite = tl.abs(start) <= FLOAT_MAX"),
        ("finite = (tl.abs(start) <= FLOAT_MAX) & (tl.abs(end) <= FLOAT_MAX)", "finite = tl.abs(end) <= FLOAT_MAX"),
        ("(np.float32(value) + np.float32(0))", "(np.float32(value))"),
        ("return bits ^ ((bits >> 31) & SIGN_CLEARED)", "return bits"),
        ("return bits ^ ((bits >> 31) & 0x7FFFFFFF)", "return bits"),
        tests=("nms", "soft_nms"),
    ),
    *mutants_of(
        "rank", True, "_rank.py",
        ("(position ^ ALL_POSITION_BITS).to(tl.int64)\n    return", "position.to(tl.int64)\n    return"),
        tests=("nms",),
    ),
    # pairwise_tiou
    *mutants_of(
        "pairwise_tiou", True, "pairwise_tiou.py",
        ("load_segment(a_ptr, row, row < n)", "load_segment(a_ptr, row, row < n - 1)"),
        ("load_segment(b_ptr, column, column < m)", "load_segment(b_ptr, column, column < m - 1)"),
        ("row[:, None] * m + column", "row[:, None] * n + column"),
        ("triton.cdiv(m, settings[\"BLOCK_M\"])", "max(1, m // settings[\"BLOCK_M\"])"),
        ("triton.cdiv(n, settings[\"BLOCK_N\"])", "max(1, n // settings[\"BLOCK_N\"])"),
    ),
    *mutants_of(
        "pairwise_tiou", False, "pairwise_tiou.py",
        ("finite_segments_numpy(b.float().numpy())", "finite_segments_numpy(b.half().float().numpy())"),
        ("unclamped_tiou_numpy(start_a[:, None], end_a[:, None], start_b, end_b)",
         "unclamped_tiou_numpy(start_b[:, None], end_b[:, None], start_a, end_a)"),
        ("np.fmax(tiou, 0, out=tiou)", "np.maximum(tiou, 0, out=tiou)"),
        ("np.fmax(tiou, 0, out=tiou)", "tiou"),
    ),
    # match
    *mutants_of(
        "match", True, "match.py",
        ("closer = tiou > best_tiou", "closer = tiou >= best_tiou"),
        ("best_tiou = tl.zeros_like(start)", "best_tiou = tl.zeros_like(start) - 1.0"),
        ("for row in range(first, last):", "for row in range(first, last - 1):"),
        ("for row in range(first, last):", "for row in range(first, last + 1):"),
        ("index = tl.where(closer, row, index)", "index = tl.where(closer, row - first, index)"),
        ("mask = anchor < anchors", "mask = anchor < anchors - 1"),
        ("mask = anchor < anchors", "mask = anchor < anchors + 1"),
        ('triton.cdiv(count, settings["BLOCK_A"])', 'max(1, count // settings["BLOCK_A"])'),
        ("index_ptr + video * anchors + anchor", "index_ptr + anchor"),
    ),
    *mutants_of(
        "match", False, "match.py",
        ("np.arange(most, 0, -1, dtype", "np.arange(1, most + 1, dtype"),
        ("dtype=np.min_scalar_type(most)", "dtype=np.uint8"),
        ("np.where(best > 0, first + (most - slots_left), -1)", "first + (most - slots_left)"),
        ("np.minimum(first + np.arange(most), last - 1)", "(first + np.arange(most)).clip(max=len(gt_segments) - 1)"),
        ("np.minimum(first + np.arange(most), last - 1)", "np.minimum(first + np.arange(most), last - 2)"),
        ("np.fmax.reduce(pairs, axis=1, initial=0)", "np.maximum.reduce(pairs, axis=1, initial=0)"),
        ("best + 0  # never -0.0", "best"),
        ("counts[order] > 0", "counts[order] > 1"),
        ("order = order[size:]", "order = order[size + 1 :]"),
        ("yield order[:size], most", "yield order[: size - 1], most"),
        ("order = np.argsort(-counts,", "order = np.argsort(counts,"),
    ),
    *mutants_of(
        "match", False, "_tiou.py",
        ("anchors[:, 0] - half_width", "anchors[:, 0] - anchors[:, 1]"),
    ),
    # match, assign and nms on a CPU with numba
    *mutants_of(
        "loops", False, "_loops.py",
        ("ZERO)\n    return intersection, max", "ONE)\n    return intersection, max"),
        ("    index[:] = -1\n    tiou", "    tiou"),
        ("    tiou[:] = 0\n", ""),
        ("closer = candidate > tiou[i]", "closer = candidate >= tiou[i]"),
        ("index[i] = truth if", "index[i] = truth - first if"),
        ("index[video, :] = row", "index[video, 1:] = row[1:]"),
        tests=("match",),
    ),
    *mutants_of(
        "loops", False, "_loops.py",
        ("            if candidate > best_tiou:", "            if candidate >= best_tiou:"),
        ("    forced[:] = False\n", ""),
        ("best >= 0 and (not forced[best] or best_tiou > tiou[best])", "best >= 0 and best_tiou > tiou[best]"),
        ("best >= 0 and (not forced[best] or best_tiou > tiou[best])", "best >= 0"),
        ("(not forced[best] or best_tiou > tiou[best])", "(not forced[best] or best_tiou >= tiou[best])"),
        ("best >= 0 and (", "True and ("),
        ("= True, row, best_tiou", "= True, row, tiou[best]"),
        ("= True, row, best_tiou", "= True, index[best], best_tiou"),
        ("            union = union if row >= 0 else ONE\n", ""),
        ("intersection > foreground_threshold * union", "intersection >= foreground_threshold * union"),
        ("intersection < background_threshold * union", "intersection <= background_threshold * union"),
        ("1 if foreground else 0 if background else -1", "0 if background else 1 if foreground else -1"),
        ("            if forced[i]:\n                kind[video, i] = 1\n", ""),
        ("gt_labels[row] if row >= 0 else -1", "gt_labels[row] if row >= 0 else 0"),
        ("gt_start[row] if row >= 0 else ZERO", "gt_start[row] if row >= 0 else ONE"),
        ("gt_end[row] if row >= 0 else ZERO", "gt_end[row] if row >= 0 else ONE"),
        tests=("assign",),
    ),
    *mutants_of(
        "loops", False, "_loops.py",
        (".view(np.uint32) ^ np.uint32(1 << 31)", ""),
        ("if eligible[video, source]:", "if True:"),
        ("if kept == index.shape[1]:", "if kept == index.shape[1] - 1:"),
        ("if suppressed[at]:\n", "if False:\n"),
        ("MARGIN * (abs(start[at])", "ZERO * (abs(start[at])"),
        ("(length * ahead + margin)", "(length * ahead * np.float32(0.9) + margin)"),
        ("longest if longest < reach else reach", "ZERO if longest < reach else reach"),
        ("reach * (ONE + MARGIN)", "reach * np.float32(0.9)"),
        ("if length <= ZERO or ahead <= ZERO:", "if True:"),
        ("for other in range(at + 1, count):", "for other in range(at + 2, count):"),
        ("for other in range(at - 1, -1, -1):", "for other in range(at - 1, 0, -1):"),
        ("label[other] != label[at] or start[other] > furthest", "start[other] > furthest"),
        ("label[other] != label[at] or start[other] < nearest", "start[other] < nearest"),
        ("index[video, kept:] = -1", "index[video, kept + 1 :] = -1"),
        ("intersection > threshold * union", "intersection >= threshold * union"),
        ("np.float32(tiou_threshold)", "np.float64(tiou_threshold)"),
        ("max(other_end - other_start, ZERO)", "(other_end - other_start)"),
        tests=("nms",),
    ),
    # assign
    *mutants_of(
        "assign", True, "assign.py",
        ("foreground = intersection > FOREGROUND_THRESHOLD * union",
         "foreground = intersection >= FOREGROUND_THRESHOLD * union"),
        ("background = intersection < BACKGROUND_THRESHOLD * union",
         "background = intersection <= BACKGROUND_THRESHOLD * union"),
        ("foreground = intersection > FOREGROUND_THRESHOLD * union",
         "foreground = intersection.to(tl.float64) > FOREGROUND_THRESHOLD * union.to(tl.float64)"),
        ("background = intersection < BACKGROUND_THRESHOLD * union",
         "background = intersection.to(tl.float64) < BACKGROUND_THRESHOLD * union.to(tl.float64)"),
        ("foreground = intersection > FOREGROUND_THRESHOLD * union", "foreground = tiou > FOREGROUND_THRESHOLD"),
        ("closer = tiou > best_tiou", "closer = tiou >= best_tiou"),
        ("tile + lowest", "lowest"),
        ("for tile in range(0, anchors, BLOCK_A):", "for tile in range(0, anchors - BLOCK_A + 1, BLOCK_A):"),
        ("load_anchor_as_segment(anchors_ptr, anchor, anchor < anchors)",
         "load_anchor_as_segment(anchors_ptr, anchor, anchor < anchors - 1)"),
        ("& (tiou > forced_tiou)", "& (tiou >= forced_tiou)"),
        ("(anchor == best) & (tiou > forced_tiou)", "(anchor == best)"),
        ("union = tl.where(matched, union, 1.0)", "pass"),
        ("tiou = tl.where(is_forced, forced_tiou, tiou)", "pass"),
        ("index = tl.where(is_forced, forced, index)", "pass"),
        ("foreground = foreground | is_forced", "pass"),
        ("mask=matched, other=-1)", "mask=matched, other=0)"),
        ("matched = mask & (index >= 0)", "matched = mask & (index > 0)"),
        ("tl.where(foreground, 1, tl.where(background, 0, -1))",
         "tl.where(background, 0, tl.where(foreground, 1, -1))"),
        ("tl.where(background, 0, -1)", "tl.where(background, -1, 0)"),
        ("mask = anchor < anchors\n", "mask = anchor < anchors - 1\n"),
    ),
    *mutants_of(
        "assign", False, "_assign_numpy.py",
        ("intersection > foreground_threshold * union", "intersection >= foreground_threshold * union"),
        ("intersection < background_threshold * union", "intersection <= background_threshold * union"),
        ("union[closest < 0] = 1", "pass"),
        ("~(foreground | (intersection", "~((intersection"),
        ("range(0, len(index), size)", "range(0, len(index) - size + 1, size)"),
        ("np.lexsort((-np.arange(len(best)), best_tiou))", "np.lexsort((np.arange(len(best)), best_tiou))"),
        ("np.lexsort((-np.arange(len(best)), best_tiou))", "np.lexsort((-np.arange(len(best)), -best_tiou))"),
        ("best_tiou[rows_by_claim] > 0", "best_tiou[rows_by_claim] >= 0"),
        ("tiou[place] = best_tiou[rows_by_claim]", "pass"),
        ("range(0, len(gt_segments), size)", "range(0, len(gt_segments), size + 1)"),
        ("        np.fmax(pairs, 0, out=pairs)\n", ""),
        ("np.append(gt_labels, -1)", "np.append(gt_labels, 0)"),
        ("np.complex64(0))", "np.complex64(1))"),
        ("if force_match and index.size:", "if force_match:"),
    ),
    *mutants_of(
        "assign", False, "assign.py",
        ("np.float32(foreground_threshold)", "np.float64(foreground_threshold)"),
        ("np.float32(background_threshold)", "np.float64(background_threshold)"),
    ),
    # decode
    *mutants_of(
        "decode", True, "decode.py",
        ("tl.minimum(tl.where(x == x, x, float(\"-inf\")), FLOAT_MAX)", "tl.where(x == x, x, float(\"-inf\"))"),
        ("tl.minimum(tl.where(x == x, x, float(\"-inf\")), FLOAT_MAX)", "tl.minimum(x, FLOAT_MAX)"),
        ("mask=inside & (index < classes)", "mask=inside & (index <= classes)"),
        ("(first + BLOCK_CLASSES + index < classes)", "(first + BLOCK_CLASSES + index <= classes)"),
        ("for first in range(0, classes, BLOCK_CLASSES):", "for first in range(0, classes - 1, BLOCK_CLASSES):"),
        ("tl.where(top > best, first, best_first)", "tl.where(top >= best, first, best_first)"),
        ("total = total * tl.exp2((best - reference) * LOG2_E)", "pass"),
        ("total * tl.exp2((best - reference[None, :]) * LOG2_E)", "total"),
        ("[None, :, None] * GROUP + tl.arange", "[None, :, None] + tl.arange"),
        ("(total != total).to(tl.int32), 0), 0) != 0:", "(total != total).to(tl.int32), 0), 0) == 2:"),
        ("start = tl.min(tl.where(best == top[None, :], own_first, classes), 0)",
         "start = tl.max(tl.where(best == top[None, :], own_first, 0), 0)"),
        ("label = tl.min(tl.where(x == top[None, :], index, classes), 0)",
         "label = tl.max(tl.where(x == top[None, :], index, 0), 0)"),
        ("tl.where(top > float(\"-inf\"), tl.div_rn(1.0, total), 0.0)", "tl.div_rn(1.0, total)"),
        ("last = tl.minimum(first + BLOCK_CELLS, all_cells)", "last = all_cells - 1"),
        ("last = tl.minimum(first + BLOCK_CELLS, earlier_cells + cells)", "last = first + BLOCK_CELLS"),
        ("1 if CHANNELS_LAST else cells, classes", "cells, classes"),
        ("probability_ptr + video * all_cells + number, probability", "probability_ptr + number, probability"),
        ("cell_labels_ptr + video * all_cells + number, label", "cell_labels_ptr + number, label"),
        ("cell = number - earlier_cells", "cell = number"),
        ("tiled = [sum(cells)] if channels_last else cells", "tiled = [sum(cells)]"),
        ("lengths = [*cells, *[0] * absent]", "lengths = [*[0] * absent, *cells]"),
        ("anchor < last * RATIOS", "anchor < last * RATIOS - 1"),
        ("channels_last = is_channels_last(", "channels_last = not is_channels_last("),
    ),
    *mutants_of(
        "decode", True, "_anchors.py",
        ("(tile >= N1)", "(tile > N1)"),
        ("(number >= T0)", "(number > T0)"),
        ("(number >= C7)", "(number > C7)"),
        ("(video * cells + cell) * channels if CHANNELS_LAST", "(video * cells + cell) if CHANNELS_LAST"),
        ("step = 1 if CHANNELS_LAST else cells", "step = cells"),
        ("anchor_centre + CENTRE_SCALE * anchor_width", "anchor_centre + anchor_width"),
        ("tl.exp(WIDTH_SCALE * width_offset)", "tl.exp(width_offset)"),
        ("CHANNELS_LAST) + 2 * ratio * step", "CHANNELS_LAST) + ratio * step"),
        ("valid = (tl.abs(centre) <= FLOAT_MAX) & (half_width == half_width)", "valid = tl.abs(centre) <= FLOAT_MAX"),
        ("valid = (tl.abs(centre) <= FLOAT_MAX) & (half_width == half_width)", "valid = half_width == half_width"),
        ("tl.minimum(tl.maximum(centre - half_width, 0.0), 1.0)", "tl.maximum(centre - half_width, 0.0)"),
        ("tl.minimum(tl.maximum(centre + half_width, 0.0), 1.0)", "tl.maximum(centre + half_width, 0.0)"),
        ("tl.minimum(tl.maximum(centre + half_width, 0.0), 1.0)", "tl.minimum(centre + half_width, 1.0)"),
        ("tl.where(overlap == overlap, tl.div_rn(1.0, 1.0 + tl.exp(-overlap)), 0.0)",
         "tl.div_rn(1.0, 1.0 + tl.exp(-overlap))"),
        ('score = tl.where(end > start, probability * overlap, float("-inf"))',
         "score = tl.where(end > start, probability * overlap, 0.0)"),
        ('score = tl.where(end > start, probability * overlap, float("-inf"))',
         'score = tl.where(end >= start, probability * overlap, float("-inf"))'),
    ),
    *mutants_of(
        "decode", False, "decode.py",
        ("nan_to_num(nan=-torch.inf, posinf", "nan_to_num(nan=0.0, posinf"),
        ("posinf=largest", "posinf=torch.inf"),
        ("return probability.where(top > -torch.inf, 0.0), label", "return probability, label"),
        ("if not top.isfinite().all():", "if top.isnan().any():"),
        ("if not top.isfinite().all():", "if top.isinf().any():"),
    ),
    *mutants_of(
        "decode", False, "_anchors.py",
        (".unflatten(1, (ratios, -1)).permute(0, 3, 1, 2)", ".unflatten(1, (-1, ratios)).permute(0, 3, 2, 1)"),
        ("probability.repeat_interleave(ratios, dim=1)", "probability.repeat(1, ratios)"),
        ("centre_scale * anchor_width * offset", "anchor_width * offset"),
        ("(width_scale * offset[..., 1])", "(offset[..., 1])"),
        ("centre.nan_to_num_(nan=-torch.inf", "centre.nan_to_num_(nan=0.0"),
        ("posinf=-torch.inf", "posinf=torch.inf"),
        ("neginf=-torch.inf", "neginf=None"),
        (".clamp_(0.0, 1.0)", ".clamp_(min=0.0)"),
        (".clamp_(0.0, 1.0)", ".clamp_(max=1.0)"),
        (".clamp_(0.0, 1.0).nan_to_num_(nan=0.0)", ".clamp_(0.0, 1.0)"),
        (".sigmoid_().nan_to_num_(nan=0.0)", ".sigmoid_()"),
        ("scores.masked_fill_(segments[..., 1] <= segments[..., 0], -torch.inf)", "pass"),
        ("segments[..., 1] <= segments", "segments[..., 1] < segments"),
    ),
    # nms, up to the limit of one launch
    *mutants_of(
        "nms", True, "nms.py",
        ("over = intersection > TIOU_THRESHOLD * union", "over = intersection >= TIOU_THRESHOLD * union"),
        ("over = intersection > TIOU_THRESHOLD * union",
         "over = intersection.to(tl.float64) > TIOU_THRESHOLD * union.to(tl.float64)"),
        ("over = over & (tl.load(ranked_labels_ptr + first + r) == label)", "pass"),
        ("label = tl.load(labels_ptr + at, mask=alive, other=0).to(tl.int32)",
         "label = tl.load(labels_ptr + at, mask=alive, other=0).to(tl.int16).to(tl.int32)"),
        ("from_earlier_rows = overlaps & (bit - 1)", "from_earlier_rows = overlaps"),
        ("changed = next_word ^ keep_word", "changed = 0"),
        ("survives = tl.where(in_block, (keep_word & bit) != 0, (overlaps & keep_word) == 0)",
         "survives = tl.where(in_block, (keep_word & bit) != 0, overlaps == 0)"),
        ("column < first + 32", "column < first + 31"),
        ("first += 32", "first += 31"),
        ("live = tl.sum(alive.to(tl.int32), 0)", "live = tl.sum(alive.to(tl.int32), 0) - 1"),
        ("(kept < outputs):", "(kept < outputs - 1):"),
        ("mask=keep & (place < outputs)", "mask=keep"),
        ("mask=keep & (place < outputs)", "mask=keep & (place < outputs - 1)"),
        ("(column >= count)", "(column > count)"),
        ("count = tl.minimum(kept, outputs)", "count = kept"),
        ("inside = column < candidates", "inside = column < candidates - 1"),
    ),
    # nms beyond it
    *mutants_of(
        "nms_large", True, "nms_large.py",
        ("rank_key(score, start, end, position, inside, MIN_SCORE_BITS), mask",
         "rank_key(score, start, end, position % BLOCK, inside, MIN_SCORE_BITS), mask"),
        ("tl.where(eligible, place_key(label, start), BEYOND)", "place_key(label, start)"),
        ("label = tl.load(labels_ptr + at, mask=eligible, other=0).to(tl.int32)", "pass"),
        ("tl.where(eligible, UNDECIDED, DROPPED)", "UNDECIDED"),
        ("(number > before)", "(number >= before)"),
        ("(number <= outputs)", "(number < outputs)"),
        ("(rank >= count)", "(rank > count)"),
        ("sort(dim=1, descending=True)", "sort(dim=1)"),
        tests=("nms",),
    ),
    *mutants_of(
        "nms_large", True, "_place.py",
        ("(ordered_bits_of(start) ^ SIGN)", "ordered_bits_of(start)"),
        ("(label.to(tl.int64) << 32)", "(label.to(tl.int64) << 31)"),
        ("length * (1.0 - TIOU_THRESHOLD) + margin", "0.0 * length"),
        ("length * before_share + margin", "0.0 * length"),
        ("(1.0 + MARGIN) * (1.0", "(1.0"),
        ("TIOU_THRESHOLD > 1e-38 else float(\"inf\")", "TIOU_THRESHOLD > 1e-38 else 1e30"),
        tests=("nms",),
    ),
    *mutants_of(
        "nms_large", True, "_decide.py",
        ("rivals = (intersection > TIOU_THRESHOLD * union) & (near_rank",
         "rivals = (intersection >= TIOU_THRESHOLD * union) & (near_rank"),
        ("rivals = rivals & (label_of(near_key)[None, :] == label_of(key)[:, None])", "pass"),
        ("tl.where(rival == KEPT, DROPPED, UNDECIDED)", "DROPPED"),
        ("rivals = there & (intersection > TIOU_THRESHOLD * union)",
         "rivals = there & (intersection >= TIOU_THRESHOLD * union)"),
        ("(tl.load(state_ptr + near, mask=rivals, other=0) == KEPT)",
         "(tl.load(state_ptr + near, mask=rivals, other=0) != DROPPED)"),
        ("over = over & (label_of(key)[:, None] == label_of(key)[None, :])", "pass"),
        ("(r[:, None] < r[None, :])", "(r[:, None] <= r[None, :])"),
        ("changed = next_word ^ keep_word", "changed = 0"),
        ("for direction in range(-1, 2, 2):", "for direction in range(-1, 0, 2):"),
        ("for direction in range(-1, 2, 2):", "for direction in range(1, 2, 2):"),
        ("row += 32", "row += 64"),
        ("near += direction * BLOCK_NEAR", "reached = 0"),
        ("tl.atomic_add(undecided_ptr + 1, left)", "pass"),
        tests=("nms",),
    ),
    # nms on a CPU
    *mutants_of(
        "nms", False, "_nms_numpy.py",
        ("return intersection > threshold * union", "return intersection >= threshold * union"),
        ("threshold = np.float32(tiou_threshold)", "threshold = np.float64(tiou_threshold)"),
        ("(scores > np.float32(min_score))", "(scores >= np.float32(min_score))"),
        ("(scores > np.float32(min_score))", "(scores > np.float64(min_score))"),
        (" & np.isfinite(segments[..., 0])", ""),
        (" & np.isfinite(segments[..., 1])", ""),
        ("(values + np.float32(0)).view", "values.view"),
        ("return bits ^ ((bits >> 31) & np.int32(0x7FFFFFFF))", "return bits"),
        ("descending | np.arange(scores.shape[1])", "descending | np.arange(scores.shape[1])[::-1]"),
        (">= max_output\n", ">= max_output - 1\n"),
        ("undecided = undecided[~hit]", "pass"),
        ('kept.sort(kind="stable")', "pass"),
        ("return key >> bits, key & ((1 << bits) - 1)", "return key >> bits, np.arange(len(key))"),
        ("axis=-1), by_key\n", "axis=-1), np.arange(len(key))\n"),
        ("key.max() < 1 << (63 - bits)", "True"),
        ("np.minimum(kept_counts, max_output)", "kept_counts"),
        ("if (int(problem[-1]) + 1) * classes < 1 << 31:", "if True:"),
        ("return np.unique(group, return_inverse=True)[1]", "return problem"),
        ("group = problem * classes +", "group = problem * (classes - 1) +"),
        ("return length * share + 2 * margin", "return length * share"),
        ("return length * share + 2 * margin", "return 0.9 * length * share + 2 * margin"),
        ("behind = _reach(rest, (1 - threshold) / threshold)", "behind = _reach(rest, 1 - threshold)"),
        ("behind *= FAR", "pass"),
        ("_reach(rest, np.float32(0)) + np.maximum(kept.end - kept.start, 0).max()", "_reach(rest, np.float32(1))"),
        ("_key(rest.group, rest.start + _reach(rest, 1 - threshold))", "_key(rest.group, rest.start)"),
        ("ordered.start + _reach(ordered, 1 - threshold)", "ordered.start"),
        ("_pairs(neighbours.near + 1,", "_pairs(neighbours.near + 2,"),
        ("decided, limit = limit, limit * WAVE_GROWTH", "pass"),
        ("neighbours.pairs > FIRST_WAVE * len(wave)", "False"),
        ("np.minimum(ends[0], ends[1]), np.maximum(ends[0], ends[1])", "ends[0], ends[1]"),
        ("np.arange(done, ends[stop - 1])", "np.arange(0, ends[stop - 1] - done)"),
        ("row = stop", "row = stop + 1"),
        ("~(decided | dropped[winner] | dropped[loser])", "~(decided | dropped[loser])"),
        ("dropped[loser[decided]] = True", "dropped[loser] = True"),
    ),
    # soft_nms
    *mutants_of(
        "soft_nms", True, "soft_nms.py",
        ("tl.where(intersection > PARAMETER * union, decayed, score)",
         "tl.where(intersection >= PARAMETER * union, decayed, score)"),
        ("tl.where(intersection > PARAMETER * union, decayed, score)",
         "tl.where(intersection.to(tl.float64) > PARAMETER * union.to(tl.float64), decayed, score)"),
        ("tl.exp(tiou * tiou * (-1.0 / PARAMETER))", "tl.exp(tiou * (-1.0 / PARAMETER))"),
        ("tl.exp(tiou * tiou * (-1.0 / PARAMETER))", "tl.exp(tiou * tiou * (-0.5 / PARAMETER))"),
        ("decayed = tl.where(label == winner_label, decayed, score)", "pass"),
        ("stays = open & is_above(decayed, MIN_SCORE_BITS)", "stays = open"),
        ("tl.store(decayed_ptr + base + winner, minus_infinity)", "pass"),
        ("        better = best > winner_score\n        winner =",
         "        better = best >= winner_score\n        winner ="),
        ("            better = best > winner_score\n            winner =",
         "            better = best >= winner_score\n            winner ="),
        ("        winner = tl.where(better, tile + at, winner)\n        winner_score",
         "        winner = tl.where(better, at, winner)\n        winner_score"),
        ("            winner = tl.where(better, tile + at, winner)\n            winner_score",
         "            winner = tl.where(better, at, winner)\n            winner_score"),
        ("(count < outputs):", "(count < outputs - 1):"),
        ("tl.store(kept_scores_ptr + video * outputs + count, winner_score)",
         "tl.store(kept_scores_ptr + video * outputs + count, tl.load(scores_ptr + base + winner))"),
        ("score = tl.where(eligible, score, minus_infinity)", "pass"),
        ("mask=inside, other=minus_infinity)", "mask=inside, other=9.0)"),
        ("index = torch.full((videos, outputs), -1,", "index = torch.full((videos, outputs), 0,"),
    ),
    *mutants_of(
        "soft_nms", False, "_soft_nms_numpy.py",
        ("intersection > np.float32(parameter) * union", "intersection >= np.float32(parameter) * union"),
        ("intersection > np.float32(parameter) * union", "intersection > np.float64(parameter) * union"),
        ("np.exp(-(tiou * tiou) / np.float32(parameter))", "np.exp(-tiou / np.float32(parameter))"),
        ("np.fmax(tiou, 0, out=tiou)", "pass"),
        ("dense_groups(video.repeat(candidates), labels.ravel())", "video.repeat(candidates)"),
        ("dense_groups(video.repeat(candidates), labels.ravel())", "labels.ravel().astype(np.int64)"),
        ("left[video, best] = closed", "pass"),
        ("np.where(after > minimum, after, np.float32(-np.inf))", "after"),
        ("np.where(after > minimum, after, np.float32(-np.inf))",
         "np.where(after >= minimum, after, np.float32(-np.inf))"),
        ("(scores > minimum)", "(scores >= minimum)"),
        (" & np.isfinite(segments[..., 0])", ""),
        (" & np.isfinite(segments[..., 1])", ""),
        ("(index >= 0).sum(axis=1)", "(index > 0).sum(axis=1)"),
        ("kept_scores[found, pick] = best_score[found]", "kept_scores[found, pick] = scores[video, best][found]"),
        ("index = np.full((videos, max_output), -1,", "index = np.full((videos, max_output), 0,"),
        ("bounds[number + 1]", "bounds[number + 1] - 1"),
    ),
    # proposal_loss
    *mutants_of(
        "proposal_loss", True, "proposal_loss.py",
        ("tl.where(x >= 1.0, 1.0, tl.where(x <= -1.0, -1.0, x))", "tl.where(x >= 1.0, 1.0, -1.0)"),
        ("tl.where(distance < 1.0, 0.5 * x * x, distance - 0.5), slope", "0.5 * x * x, slope"),
        ("inside = cell < cells\n    offsets_ptr", "inside = cell <= cells\n    offsets_ptr"),
        ("offset_gradient_ptr = gradient_ptr + 2 * earlier", "offset_gradient_ptr = gradient_ptr + earlier"),
        ("gradient_ptr + 2 * videos * anchors + earlier", "gradient_ptr + 2 * videos * anchors"),
        ("foreground = inside & (tl.load(kind_ptr + at, mask=inside, other=0) == 1)", "foreground = inside"),
        ("centre_step = CENTRE_SCALE * anchor_width", "centre_step = anchor_width"),
        ("step = 1 if CHANNELS_LAST else cells", "step = cells"),
        ("CHANNELS_LAST) + 2 * ratio * step", "CHANNELS_LAST) + ratio * step"),
        ("first_value(video, RATIOS, cell, cells, CHANNELS_LAST)", "first_value(video, RATIOS, cell, cells, False)"),
        ("tl.exp(WIDTH_SCALE * width_offset)", "tl.exp(width_offset)"),
        ("width_slope * width * WIDTH_SCALE", "width_slope * width"),
        ("offset_sum += centre_distance + width_distance", "offset_sum += centre_distance"),
        ("foreground_count += foreground.to(tl.float32)", "foreground_count += inside.to(tl.float32)"),
        ("error = tl.where(inside, predicted - tiou, 0.0)", "error = predicted - tiou"),
        ("2.0 * error * predicted * (1.0 - predicted)", "2.0 * error"),
        ("sums_ptr += video * tl.num_programs(1) + tl.program_id(1)", "sums_ptr += tl.program_id(1)"),
        ("tl.maximum(tl.sum(foreground_count, 0), 1.0)", "tl.sum(foreground_count, 0)"),
        ("tile = first + tl.arange(0, BLOCK)", "tile = tl.arange(0, BLOCK)"),
        ("of_offsets = at < 2 *", "of_offsets = at <= 2 *"),
        ("tl.where(gradient == 0.0, 0.0, gradient *", "tl.where(gradient != gradient, 0.0, gradient *"),
        ("grid = (triton.cdiv(size, settings[\"BLOCK\"]),)", "grid = (max(1, size // settings[\"BLOCK\"]),)"),
    ),
    *mutants_of(
        "proposal_loss", False, "_proposal_loss_cpu.py",
        ("np.flatnonzero(kind.numpy() == FOREGROUND)", "np.flatnonzero(kind.numpy())"),
        ("side=\"right\"", "side=\"left\""),
        ("2 * videos * first + 2 * (video * ratios", "2 * first + 2 * (video * ratios"),
        ("2 * videos * first + 2 * ((video", "2 * first + 2 * ((video"),
        ("of_centre + length])", "of_centre + 1])"),
        ("of_centre + 1])", "of_centre + length])"),
        ("(video * length + cell) * ratios + ratio)", "(video * length + cell) + ratio)"),
        ("np.float32(centre_scale) * anchor_width", "anchor_width"),
        ("np.float32(width_scale) * width_offset", "width_offset"),
        ("width * np.float32(width_scale)])", "width])"),
        ("distance.clip(-1, 1)", "distance"),
        ("max(1, len(anchor))", "max(1, count)"),
        ("/ max(1, videos * count)", "/ (videos * count)"),
        ("scale.transpose(1, 2) if channels_last else scale", "scale"),
        ("overlap_gradient / max(1, anchors)", "overlap_gradient"),
        ("output[part][gradient[part] == 0] = 0", "pass"),
        ("np.where(size < 1, np.float32(0.5) * size * size, size - np.float32(0.5))", "size"),
    ),
    *mutants_of(
        "proposal_loss", False, "proposal_loss.py",
        ("for scale in (*offsets, *overlaps)]", "for scale in (*overlaps, *offsets)]"),
        ("ctx.channels_last = is_channels_last([*offsets, *overlaps])", "ctx.channels_last = False"),
        ("ctx.channels_last = is_channels_last([*offsets, *overlaps])", "ctx.channels_last = True"),
    ),
    # classify, and the class logits that it shares with classification_loss
    *mutants_of(
        "classify", True, "classify.py",
        ("features = [x.contiguous() for x in features]", "pass"),
        ("sum(cells[:j]) for place", "sum(cells[:place]) for place"),
        ("tl.minimum(tl.where(logits == logits, logits, float(\"-inf\")), FLOAT_MAX)", "tl.minimum(logits, FLOAT_MAX)"),
        ("tl.minimum(tl.where(logits == logits, logits, float(\"-inf\")), FLOAT_MAX)",
         "tl.where(logits == logits, logits, float(\"-inf\"))"),
        ("label = tl.min(tl.where(logits == top[:, None], index[None, :], classes), 1)",
         "label = tl.max(tl.where(logits == top[:, None], index[None, :], 0), 1)"),
        ("shift = tl.where(top > float(\"-inf\"), top, 0.0)", "shift = top"),
        ("at = chunk.to(tl.int64) * videos * all_cells + video * all_cells", "at = video * all_cells"),
        ("at += of_scale(scale, C0, C1, C2, C3, C4, C5, C6, C7) + cell", "at += cell"),
        ("inside = row < videos * cells", "inside = row < videos * cells - 1"),
        ("rises = top > best", "rises = top >= best"),
        ("tl.where(top > float(\"-inf\"), tl.exp(-tl.abs(top - best)), 0.0)", "tl.exp(-tl.abs(top - best))"),
        ("tl.where(rises, total * decay + part, total + part * decay)", "total * decay + part"),
        ("tl.where(rises, total * decay + part, total + part * decay)", "total + part * decay"),
        ("label = tl.where(rises, tl.load(label_ptr + at, mask=inside, other=0), label)",
         "label = tl.load(label_ptr + at, mask=inside, other=0)"),
        ("found = best > float(\"-inf\")", "found = best == best"),
        ("at += cells\n", "pass\n"),
        ("triton.cdiv(classes, settings[\"BLOCK_CLASSES\"])", "max(1, classes // settings[\"BLOCK_CLASSES\"])"),
        ("triton.cdiv(videos * sum(cells), settings[\"BLOCK\"])",
         "max(1, videos * sum(cells) // settings[\"BLOCK\"])"),
    ),
    *mutants_of(
        "classify", True, "_class_logits.py",
        ("(tile >= n1)", "(tile > n1)"),
        ("n3 = n2 + tl.cdiv(videos * T2, BLOCK_ROWS)", "n3 = n2 + tl.cdiv(T2, BLOCK_ROWS)"),
        ("return (video * cells + cell) * dimension if CHANNELS_LAST", "return video * cells + cell if CHANNELS_LAST"),
        ("else video * dimension * cells + cell", "else video * cells + cell"),
        ("step = 1 if CHANNELS_LAST else cells", "step = 1"),
        ("for first in range(0, dimension, BLOCK_D):", "for first in range(0, dimension - 1, BLOCK_D):"),
        ("total = multiply(x, tl.trans(w), total)", "total = multiply(x, tl.trans(w), 0.0 * total)"),
        ("mask=index < classes, other=float(\"-inf\"))", "mask=index < classes, other=0.0)"),
        ("return total + bias[None, :]", "return total"),
    ),
    *mutants_of(
        "classify", True, "_arguments.py",
        ("return all(_is_transposed(x)", "return any(_is_transposed(x)"),
        ("x.stride() == (channels * cells, 1, channels)", "x.stride()[1] == 1"),
    ),
    *mutants_of(
        "classify", False, "classify.py",
        ("label = torch.where(top > best, index.add_(first), label)",
         "label = torch.where(top >= best, index.add_(first), label)"),
        ("index.add_(first)", "index"),
        ("total = total * (best - reference).exp_() +", "total = total +"),
        ("reference = top.where(top > -torch.inf, 0.0)", "reference = top"),
        ("if not top.isfinite().all():", "if top.isnan().any():"),
        ("if not top.isfinite().all():", "if top.isinf().any():"),
        ("nan_to_num_(nan=-torch.inf,", "nan_to_num_(nan=0.0,"),
        ("posinf=torch.finfo(torch.float32).max", "posinf=torch.inf"),
        ("total.reciprocal().where(best > -torch.inf, 0.0)", "total.reciprocal()"),
    ),
    # decode_classified, besides what it shares with decode
    *mutants_of(
        "decode_classified", True, "decode_classified.py",
        ("tl.program_id(1) * BLOCK_ANCHORS + tl.arange", "tl.arange"),
        ("anchor < all_cells * RATIOS", "anchor < all_cells * RATIOS - 1"),
        ("RATIOS=ratios, CENTRE_SCALE=centre_scale, WIDTH_SCALE=width_scale",
         "RATIOS=ratios, CENTRE_SCALE=width_scale, WIDTH_SCALE=centre_scale"),
        ("CHANNELS_LAST=is_channels_last(", "CHANNELS_LAST=not is_channels_last("),
        ("triton.cdiv(count, settings[\"BLOCK_ANCHORS\"])", "max(1, count // settings[\"BLOCK_ANCHORS\"])"),
        ("lengths = [*(x.shape[2] for x in offsets), *[0] * absent]",
         "lengths = [*[0] * absent, *(x.shape[2] for x in offsets)]"),
    ),
    *mutants_of(
        "decode_classified", True, "_anchors.py",
        ("(number >= T0)", "(number > T0)"),
        ("(number >= C7)", "(number > C7)"),
        ("number, ratio = anchor // RATIOS, anchor % RATIOS", "number, ratio = anchor // RATIOS, 0"),
        ("probability_ptr + video * all_cells + number", "probability_ptr + number"),
        ("cell_labels_ptr + video * all_cells + number", "cell_labels_ptr + number"),
        ("at = video * all_cells * RATIOS + anchor", "at = anchor"),
    ),
    *mutants_of(
        "decode_classified", False, "decode_classified.py",
        ("return decode_anchors_torch(probability, labels, offsets, overlaps, anchors, centre_scale, width_scale)",
         "return decode_anchors_torch(probability, labels, offsets, overlaps, anchors, width_scale, centre_scale)"),
    ),
    *mutants_of(
        "decode_classified", False, "_anchors.py",
        ("scores, labels.repeat_interleave(ratios, dim=1)", "scores, labels.repeat(1, ratios)"),
        ("probability.repeat_interleave(ratios, dim=1)", "probability.repeat(1, ratios)"),
        ("(width_scale * offset[..., 1])", "(offset[..., 1])"),
    ),
    # classification_loss
    *mutants_of(
        "labelled_cells", True, "_labelled_cells.py",
        ("mask=row < videos * cells, other=-1)", "mask=row < videos * cells, other=0)"),
        ("labelled = (label >= 0) & (label < classes)\n        place", "labelled = label >= 0\n        place"),
        ("labelled = (label >= 0) & (label < classes)\n        place", "labelled = label < classes\n        place"),
        ("all_cells + earlier + row % cells", "all_cells + row % cells"),
        ("tl.cumsum(labelled.to(tl.int32), 0) - 1", "tl.cumsum(labelled.to(tl.int32), 0)"),
        ("end += tl.sum(labelled.to(tl.int32), 0)", "end += BLOCK"),
        ("mask=row < last)", "mask=row < last - 1)"),
        ("for first in range(end, last, BLOCK):", "for first in range(end + 1, last, BLOCK):"),
    ),
    *mutants_of(
        "labelled_cells", False, "_labelled_cells.py",
        ("((part >= 0) & (part < classes))", "(part >= 0)"),
        ("((part >= 0) & (part < classes))", "(part < classes)"),
        ("video * all_cells + earlier + cell", "video * all_cells + cell"),
        ("earlier += length", "pass"),
        ("torch.full((labels.numel(),), -1), []", "torch.full((labels.numel(),), 0), []"),
    ),
    *mutants_of(
        "classification_loss", True, "classification_loss.py",
        ("if videos * earlier + first < end:", "if videos * earlier + first < end - 1:"),
        ("inside = row < end", "inside = row < end - 1"),
        ("top = tl.where(top > float(\"-inf\"), top, 0.0)", "pass"),
        ("part_ptr + chunk * rows + row", "part_ptr + row"),
        ("picked = tl.sum(tl.where(is_label, logits, 0.0), 1)", "picked = tl.max(tl.where(is_label, logits, 0.0), 1)"),
        ("(label // BLOCK_CLASSES == chunk)", "(label // BLOCK_CLASSES <= chunk)"),
        ("mask=row < rows, other=-1) >= 0", "mask=row < rows, other=-1) > 0"),
        ("mask=row < rows, other=-1) >= 0", "mask=row < rows, other=-1) >= -1"),
        ("reference = tl.where(rising > float(\"-inf\"), rising, 0.0)", "reference = rising"),
        ("total = total * tl.exp(top - reference) +", "total = total +"),
        ("at += rows", "pass"),
        ("triton.cdiv(rows, settings[\"BLOCK\"])", "max(1, rows // settings[\"BLOCK\"])"),
        ("triton.cdiv(classes, settings[\"BLOCK_CLASSES\"])", "max(1, classes // settings[\"BLOCK_CLASSES\"])"),
    ),
    *mutants_of(
        "classification_loss", True, "_class_logits.py",
        ("mask=index < classes, other=float(\"-inf\"))", "mask=index < classes, other=0.0)"),
        ("for first in range(0, dimension, BLOCK_D):", "for first in range(0, dimension - 1, BLOCK_D):"),
    ),
    *mutants_of(
        "classification_loss", True, "_classification_gradients.py",
        ("label = tl.where(row < end, tl.load(labels_ptr + source).to(tl.int32), -1)",
         "label = tl.load(labels_ptr + source).to(tl.int32)"),
        ("mask=row < end, other=float(\"inf\"))", "mask=row < end, other=0.0)"),
        ("tl.exp(logits - log_sum[:, None]) - tl.where(is_label, 1.0, 0.0)", "tl.exp(logits - log_sum[:, None])"),
        ("(videos * earlier + first < end) &", "(videos * earlier + first < end - 1) &"),
        ("for first_class in range(0, classes, BLOCK_CLASSES):",
         "for first_class in range(0, classes - 1, BLOCK_CLASSES):"),
        ("total = multiply(difference.to(w.dtype), w, total)",
         "total = multiply(difference.to(w.dtype), w, 0.0 * total)"),
        ("total *= tl.load(gradient_ptr).to(tl.float32)", "pass"),
        ("output_ptr += tl.cast(videos, tl.int64) * maps", "output_ptr += maps"),
        ("mask=(row < end)[:, None] & (channel", "mask=(row < end - 1)[:, None] & (channel"),
        ("for first in range(videos * earlier, end, BLOCK_ROWS):",
         "for first in range(videos * earlier, end - 1, BLOCK_ROWS):"),
        ("total = multiply(tl.trans(difference.to(x.dtype)), x, total)",
         "total = multiply(tl.trans(difference.to(x.dtype)), x, 0.0 * total)"),
        ("bias_total += tl.sum(difference, 0)", "bias_total = tl.sum(difference, 0)"),
        ("weight_output_ptr += tl.cast(classes, tl.int64) * first", "weight_output_ptr += first"),
        ("total * loss_gradient, mask=(index < classes)[:", "total, mask=(index < classes)[:"),
        ("bias_output_ptr + scale * classes + index", "bias_output_ptr + index"),
        ("bias_total * loss_gradient", "bias_total"),
        ("triton.cdiv(deepest, by_rows[\"BLOCK_OUT\"])", "max(1, deepest // by_rows[\"BLOCK_OUT\"])"),
        ("triton.cdiv(deepest, by_classes[\"BLOCK_OUT\"])", "max(1, deepest // by_classes[\"BLOCK_OUT\"])"),
        ("triton.cdiv(classes, by_classes[\"BLOCK_CLASSES\"])", "max(1, classes // by_classes[\"BLOCK_CLASSES\"])"),
    ),
    *mutants_of(
        "classification_loss", False, "classification_loss.py",
        ("_classification_loss_backward(gradient, *per_scale,",
         "_classification_loss_backward(0.5 * gradient, *per_scale,"),
        ("(order >= 0).sum().clamp(min=1)", "(order >= 0).sum()"),
        ("(order >= 0).sum().clamp(min=1)", "labels.numel()"),
        ("[x.shape for x in features], channels_last=True", "[x.shape for x in features], channels_last=False"),
    ),
    *mutants_of(
        "classification_loss", False, "_classification_loss_cpu.py",
        ("functools.reduce(torch.logaddexp, (logits.logsumexp(dim=1) for _, logits in parts))",
         "[logits.logsumexp(dim=1) for _, logits in parts][-1]"),
        (".sum(dim=1) + bias\n", ".sum(dim=1)\n"),
        ("loss += (total - picked).sum()", "loss = (total - picked).sum()"),
        ("rows = slice(videos * first, end)", "rows = slice(first, end)"),
        ("cell[rows] - first", "cell[rows]"),
        ("first += x.shape[2]", "pass"),
        ("(label >= part.start) & (label < part.stop)", "(label < part.stop)"),
        ("difference[here, label[here] - part.start] -= 1", "pass"),
        ("total.addmm_(difference, weights[j][part].float())", "total = difference @ weights[j][part].float()"),
        ("torch.mul(difference.T @ x, gradient,", "torch.mul(difference.T @ x, 1.0,"),
        ("torch.mul(difference.sum(dim=0), gradient,", "torch.mul(difference.sum(dim=0), 1.0,"),
        ("(gradient * total)", "total"),
    ),
    # pick
    *mutants_of(
        "pick", True, "pick.py",
        ("tl.program_id(0).to(tl.int64) * BLOCK + tl.arange", "tl.arange"),
        ("inside = row < rows", "inside = row < rows - 1"),
        ("found = position >= 0\n    at", "found = position > 0\n    at"),
        ("at = row // outputs * candidates + position", "at = position"),
        ("at = row // outputs * candidates + position", "at = row // candidates * outputs + position"),
        ("score = tl.load(scores_ptr + at, mask=found, other=0.0)",
         "score = tl.load(scores_ptr + at, mask=found, other=1.0)"),
        ("label = tl.load(labels_ptr + at, mask=found, other=-1)",
         "label = tl.load(labels_ptr + at, mask=found, other=0)"),
        ("triton.cdiv(rows, settings[\"BLOCK\"])", "max(1, rows // settings[\"BLOCK\"])"),
    ),
    *mutants_of(
        "pick", False, "pick.py",
        ("found = index >= 0", "found = index > 0"),
        (".where(found[..., None], 0.0)", ""),
        ("scores.float().gather(1, position).where(found, 0.0)", "scores.float().gather(1, position)"),
        (".where(found, -1)", ".where(found, 0)"),
        ("segments.float().gather(1, position", "segments.gather(1, position"),
        ("if scores.shape[1] == 0:", "if False:"),
    ),
    # resample
    *mutants_of(
        "resample", True, "resample.py",
        ("tl.maximum(left, -1.0))", "left)"),
        ("tl.minimum(right, 1.0))", "right)"),
        ("tl.where(flat_before, 1.0, 1.0 + 0.5 * (a + b))", "(1.0 + 0.5 * (a + b))"),
        ("tl.where(flat_after, 1.0, 1.0 - 0.5 * (a + b))", "(1.0 - 0.5 * (a + b))"),
        ("row == 0, row == rows - 1)", "row == 0, row == rows)"),
        ("tl.div_rn(steps * 1.0, rows.to(tl.float32))", "1.0"),
        ("row = (2 * edge + STEPS) // (2 * STEPS) - 1", "row = (2 * edge + STEPS) // (2 * STEPS)"),
        ("row = (2 * edge + STEPS) // (2 * STEPS) - 1", "row = edge // STEPS - 1"),
        ("left -= 1.0", "left -= 0.0"),
        ("tl.minimum(tl.maximum(row + k, 0), rows - 1)", "tl.minimum(row + k, rows - 1)"),
        ("tl.minimum(tl.maximum(row + k, 0), rows - 1)", "tl.maximum(row + k, 0)"),
        ("(weight != 0.0)[:, None] & (channel < dimension)[None, :]\n        at = features",
         "(channel < dimension)[None, :]\n        at = features"),
        ("tl.cdiv(rows, STEPS) + 2", "tl.cdiv(rows, STEPS) + 1"),
        ("support = tl.where(rows > 0, tl.cdiv(rows, STEPS) + 2, 0)", "support = rows // STEPS + 2"),
        ("features_ptr += begin * dimension", "pass"),
        ("mask = (step < STEPS)[:, None] & (channel < dimension)[None, :]",
         "mask = (step < STEPS - 1)[:, None] & (channel < dimension)[None, :]"),
        ("triton.cdiv(dimension, settings[\"BLOCK_D\"]))\n        checked", "1)\n        checked"),
        ("triton.cdiv(steps, settings[\"BLOCK_T\"])", "max(1, steps // settings[\"BLOCK_T\"])"),
        ("stored.to(tl.float32)) <= FLOAT_MAX", "mean) <= FLOAT_MAX"),
        ("broken = mask & ~", "broken = ~"),
        ("tl.store(finite_ptr + video, 0)", "tl.store(finite_ptr, 0)"),
    ),
    *mutants_of(
        "resample_backward", True, "resample.py",
        ("first = tl.maximum((2 * row - 1) * STEPS, 0) // (2 * rows)",
         "first = tl.maximum((2 * row + 1) * STEPS, 0) // (2 * rows)"),
        ("(2 * STEPS + rows - 1) // rows, 0), 0) + 2", "(2 * STEPS + rows - 1) // rows, 0), 0)"),
        ("(2 * STEPS + rows - 1) // rows, 0), 0) + 2", "(STEPS + rows - 1) // rows, 0), 0) + 2"),
        ("tl.where(inside & (step < STEPS), bin_weight(", "tl.where(inside, bin_weight("),
        ("row = at_row - begin", "row = at_row"),
        ("gradient_ptr + (video * STEPS + step)", "gradient_ptr + step"),
        ("right=True)", "right=False)"),
        ("triton.cdiv(dimension, settings[\"BLOCK_D\"]))\n        videos", "1)\n        videos"),
        ("triton.cdiv(rows, settings[\"BLOCK_ROWS\"])", "max(1, rows // settings[\"BLOCK_ROWS\"])"),
        tests=("resample",),
    ),
    *mutants_of(
        "resample", False, "_resample_numpy.py",
        ("np.where(is_first, left, np.maximum(left, -1))", "left"),
        ("np.where(is_last, right, np.minimum(right, 1))", "right"),
        ("np.where(is_first, 1, 1 + (a + b) / 2)", "(1 + (a + b) / 2)"),
        ("np.where(is_last, 1, 1 - (a + b) / 2)", "(1 - (a + b) / 2)"),
        ("first = np.maximum(2 * step * rows - steps, 0)", "first = np.maximum(2 * step * rows + steps, 0)"),
        ("- steps) // (2 * steps) + 1, rows - 1)", "- steps) // (2 * steps), rows - 1)"),
        ("- steps) // (2 * steps) + 1, rows - 1)", "- steps) // (2 * steps) + 1, rows - 2)"),
        ("(row + first_row[bin_of])", "row"),
        ("weighs = weights != 0", "weighs = weights >= 0"),
        ("* (steps / rows)", ""),
    ),
    *mutants_of(
        "resample_backward", False, "_resample_numpy.py",
        ("order = np.argsort(self.columns, kind=\"stable\")", "order = np.arange(len(self.columns))"),
        ("self.weights[order])", "self.weights)"),
        tests=("resample",),
    ),
    *mutants_of(
        "resample_backward", False, "resample.py",
        ("return _resample_backward(gradient.contiguous(), offsets, ctx.rows)",
         "return 0.5 * _resample_backward(gradient.contiguous(), offsets, ctx.rows)"),
        tests=("resample",),
    ),
    # stretch
    *mutants_of(
        "stretch", True, "stretch.py",
        ("inside = (own >= 0) & (own < size)", "inside = own < size"),
        ("inside = (own >= 0) & (own < size)", "inside = own >= 0"),
        ("row = (2 * edge + size) // (2 * size) - 1", "row = edge // size - 1"),
        ("tl.cdiv(rows, size) + 2", "tl.cdiv(rows, size) + 1"),
        ("at_row = sequence * rows + tl.minimum", "at_row = tl.minimum"),
        ("tl.minimum(tl.maximum(row + k, 0), rows - 1)", "tl.maximum(row + k, 0)"),
        ("tl.minimum(tl.maximum(row + k, 0), rows - 1)", "tl.minimum(row + k, rows - 1)"),
        ("mask = (inside & (weight != 0.0))[:, None]", "mask = inside[:, None]"),
        ("own = step - before", "own = step"),
        ("own -= middle", "pass"),
        ("mask=(step < steps)[:, None] & (channel", "mask=(step < steps - 1)[:, None] & (channel"),
        ("first_step = sequence // sequences * steps", "first_step = 0 * sequence"),
        ("sequence = video * sequences + tl", "sequence = video * sequences + 0 * tl"),
        ("number = (sequence % sequences).to", "number = (0 * sequence).to"),
        ("for piece in tl.static_range(PIECE):", "for piece in tl.static_range(0):"),
        ("first = tl.maximum((2 * row - 1) * size, 0) // (2 * rows)",
         "first = tl.maximum((2 * row + 1) * size, 0) // (2 * rows)"),
        ("(2 * size + rows - 1) // rows, 0) + 2", "(2 * size + rows - 1) // rows, 0)"),
        ("tl.where(shown.to(tl.int32) == number, bin", "tl.where(own < size, bin"),
        ("mask=own < size, other=-1)", "mask=own < size, other=0)"),
        ("triton.cdiv(total_rows, settings[\"BLOCK_ROWS\"])", "max(1, total_rows // settings[\"BLOCK_ROWS\"])"),
        ("triton.cdiv(steps, settings[\"BLOCK_T\"])", "max(1, steps // settings[\"BLOCK_T\"])"),
    ),
    *mutants_of(
        "stretch", False, "_resample_numpy.py",
        ("(lengths.sum(axis=1) != steps).any() or", "False or"),
        ("or (lengths < 0).any()", ""),
        ("np.cumsum([0, *rows[:-1]])", "np.cumsum([0, *rows[1:]])"),
        ("or (shown >= sequences).any()", ""),
        ("(shown < 0).any() or", ""),
        ("sum(rows) * sequence +", "0 * sequence +"),
        ("np.full_like(step, rows), rows * sequence)", "np.full_like(step, rows), 0 * sequence)"),
        ("columns=at[by_row.columns]", "columns=by_row.columns"),
        ("np.arange(videos)[:, None] + shown)", "np.arange(videos)[:, None] + 0 * shown)"),
        ("step - (ends - lengths)", "step - 0 * (ends - lengths)"),
    ),
    *mutants_of(
        "stretch", False, "stretch.py",
        ("if any(piece.dtype == torch.float64 for piece in pieces) else torch.float32",
         "if all(piece.dtype == torch.float64 for piece in pieces) else pieces[0].dtype"),
    ),
]  # fmt: skip


def check(mutants: list[Mutant]) -> list[str]:
    """What is wrong with the table: texts that do not occur exactly once."""
    wrong = []
    for mutant in mutants:
        occurrences = (ROOT / PACKAGE / mutant.file).read_text().count(mutant.old)
        if occurrences != 1:
            wrong.append(f"found {occurrences} times: {mutant}")
    return wrong


def tests_fail(tests: tuple[str, ...], on_gpu: bool, mutant: Mutant | None) -> bool:
    """Whether the contract tests fail on a copy of the kernels with the mutation, or without one."""
    with tempfile.TemporaryDirectory(prefix="mutant-") as name:
        folder = Path(name)
        for part in ("kernels", "tests"):
            shutil.copytree(ROOT / part, folder / part, ignore=shutil.ignore_patterns("__pycache__", ".*"))
        shutil.copy(ROOT / "pyproject.toml", folder)
        with (folder / CONTRACTS / "conftest.py").open("a") as conftest:
            conftest.write(WITHOUT_SHRINKING)
        if mutant:
            file = folder / PACKAGE / mutant.file
            file.write_text(file.read_text().replace(mutant.old, mutant.new))
        # Those of the op first: they kill most of its mutants, and the first failure ends a run.
        paths = [CONTRACTS / f"test_{test}.py" for test in (*tests, "edges_of_tiles_and_blocks")]
        environment = {
            **os.environ,
            "PYTHONPATH": str(folder / "kernels"),
            "OMP_NUM_THREADS": "1",
            "TRITON_INTERPRET": "1" if on_gpu else "0",
            "CUDA_VISIBLE_DEVICES": "",
        }
        command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", "--hypothesis-seed=0", *paths]
        try:
            result = subprocess.run(command, cwd=folder, env=environment, capture_output=True, timeout=SECONDS)
        except subprocess.TimeoutExpired:
            return True
        return result.returncode != 0


def main() -> int:
    """Run the chosen mutants and report; see the module's docstring for the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", help="mutants of this op", choices=sorted({mutant.op for mutant in MUTANTS}))
    parser.add_argument("--jobs", type=int, default=1, help="mutants tested at a time")
    arguments = parser.parse_args()
    chosen = [mutant for mutant in MUTANTS if arguments.only in (None, mutant.op)]
    wrong = check(MUTANTS)
    if any(mutant.file == "_loops.py" for mutant in chosen) and importlib.util.find_spec("numba") is None:
        wrong.append("needs numba: the mutants of _loops.py")
    if not wrong:
        suites = sorted({(mutant.tests, mutant.on_gpu) for mutant in chosen})
        wrong = [f"fails without a mutation: {suite}" for suite in suites if tests_fail(*suite, None)]
    if wrong:
        print(*wrong, sep="\n")
        return 2
    with ThreadPoolExecutor(arguments.jobs) as pool:
        outcomes = []
        for mutant, killed in zip(
            chosen, pool.map(lambda mutant: tests_fail(mutant.tests, mutant.on_gpu, mutant), chosen), strict=True
        ):
            outcomes.append(killed)
            print("killed  " if killed else "SURVIVED", mutant, flush=True)
    print(f"{sum(outcomes)} of {len(outcomes)} mutants killed")
    return 0 if all(outcomes) else 1


if __name__ == "__main__":
    sys.exit(main())

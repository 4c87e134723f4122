"""Tables of scores: in Markdown, which is read in a terminal as well, in LaTeX and as comma-separated values.

A table is a list of rows and a row a list of texts, the head first.
"""
import csv
import io
import re
from pathlib import Path
from typing import NamedTuple

from utils.metrics import EXTRA, PROTOCOLS, mean_scores

MEASURED = "measured here"  # the source of all that is not published
PUBLISHED = Path(__file__).with_name("published.csv")
DIGITS = {"psnr": 3, "ssim": 4, "lpips": 4, "niqe": 3, "brisque": 3}
PLAIN_MARKS = {1: "{}*", 2: "{}'"}  # of the best and the second best
LATEX_MARKS = {1: r"\textbf{{{}}}", 2: r"\underline{{{}}}"}


class Method(NamedTuple):
    """The mean scores of one method: a row of the overview."""

    name: str
    images: str  # how many, or which
    scores: dict  # {"psnr_rgb": float, or text as published, ...}
    source: str = MEASURED
    ranked: bool = False


def published(dataset, keys, images):
    """Return the published scores `keys` of a data set, a list of `Method`; those of images "1 to 40" where `images` is 40."""
    with PUBLISHED.open(encoding="utf-8", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["dataset"] == dataset
                and (" to " not in row["images"] or row["images"] == f"1 to {images}")]
    scores = [{key: row[key] for key in keys if row.get(key)} for row in rows]
    return [Method(row["method"], row["images"], known, row["source"]) for row, known in zip(rows, scores) if known]


def columns(keys):
    """Return [(heading, scores)]: PSNR and SSIM of a protocol share a column, each score of pyiqa has its own."""
    pairs = [(f"{protocol.name} PSNR / SSIM", [f"psnr_{name}", f"ssim_{name}"]) for name, protocol in PROTOCOLS.items()
             if f"psnr_{name}" in keys]
    return pairs + [(key.upper(), [key]) for key in EXTRA if key in keys]


def score_text(key, value, sign=""):
    """Format a score with the digits of its kind, a published one as it was published; SSIM without the 0 before the point."""
    text = value if isinstance(value, str) else f"{value:{sign}.{DIGITS[key.partition('_')[0]]}f}"
    return re.sub(r"^([+-]?)0\.", r"\1.", text) if key.startswith("ssim") else text


def cell(scores, keys, marks={}, sign=""):
    """Format the scores of a cell of a table, with the marks of the best ones."""
    return " / ".join(marks.get(key, "{}").format(score_text(key, scores[key], sign)) for key in keys if key in scores)


def best_two(methods):
    """Return {(method's number, key): 1 or 2}, the best and second best as shown, of the ranked methods if there are two."""
    ranked, places = [number for number, method in enumerate(methods) if method.ranked], {}
    for key in methods[ranked[0]].scores if len(ranked) > 1 else ():
        shown = {number: float(score_text(key, methods[number].scores[key])) for number in ranked}
        best = sorted(set(shown.values()), reverse=key not in EXTRA)[:2]
        places |= {(number, key): best.index(value) + 1 for number, value in shown.items() if value in best}
    return places


def overview(methods, shown, marks=PLAIN_MARKS):
    """Lay out the table of the means, in some of `columns`: a row a method, the source of published ones in a row above."""
    best, source = best_two(methods), MEASURED
    lines = [["method", "images", *(heading for heading, _ in shown)]]
    for number, method in enumerate(methods):
        own_marks = {key: marks[place] for (which, key), place in best.items() if which == number}
        cells = [cell(method.scores, keys, own_marks) for _, keys in shown]
        if any(cells):
            if method.source != source:
                source = method.source
                lines.append([f"{source}:", *[""] * (len(shown) + 1)])
            lines.append([method.name, method.images, *cells])
    return lines


def image_table(results, keys, total):
    """Lay out the scores `keys` of {method: {image: its scores}}: a row an image and one of the means; "gain" gets a sign."""
    images = dict.fromkeys(image for rows in results.values() for image in rows)
    same = all(len(rows) == len(images) for rows in results.values())
    part = "" if len(images) == total else f" of {total}"
    last = f"mean of {len(images)}{part}" if same else "mean of those scored"
    by_column = [["image", *images, last]]
    for name, rows in results.items():
        sign = "+" if name == "gain" else ""
        cells = [cell(rows.get(image, {}), keys, sign=sign) for image in images]
        by_column.append([name, *cells, cell(mean_scores(list(rows.values())), keys, sign=sign)])
    return list(zip(*by_column))


def markdown(lines):
    """Format a table in Markdown, its columns filled up with blanks, so that it is readable as it stands."""
    widths = [max(map(len, column)) for column in zip(*lines)]
    lines = [lines[0], ["-" * width for width in widths], *lines[1:]]
    return "\n".join(f"| {' | '.join(map(str.ljust, line, widths))} |" for line in lines)


def latex(lines):
    """Format a table as rows of a LaTeX table."""
    return "\n".join(" & ".join(re.sub(r"([_&%#$])", r"\\\1", text) for text in line) + r" \\" for line in lines)


def csv_text(rows):
    """Format dicts of text or float as comma-separated values, floats with six decimals; what a row lacks is left empty."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(dict.fromkeys(key for row in rows for key in row)), lineterminator="\n")
    writer.writeheader()
    writer.writerows({key: f"{value:.6f}" if isinstance(value, float) else value for key, value in row.items()} for row in rows)
    return text.getvalue()

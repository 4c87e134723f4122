"""Tables of scores: as text of at most 80 columns, as Markdown and as comma-separated values, with published figures beside."""
import csv
import io
import math
from pathlib import Path
from typing import NamedTuple

from utils.image import ImageError, check_results_folder, write_bytes
from utils.metrics import EXTRA, PROTOCOLS, mean_scores

MEASURED = "measured here"  # the source of all that is not published
PUBLISHED = Path(__file__).with_name("published.csv")
NAME_WIDTH = 24  # of an image table's first column; with three pairs of numbers the table is 78 wide
METHOD_WIDTH = 30  # of the overview's first column; with the number of images and four scores it is 78 wide
DIGITS = {"psnr": 3, "ssim": 4, "lpips": 4, "niqe": 3, "brisque": 3}


class Method(NamedTuple):
    """A row of the overview: the means of one method."""

    name: str
    images: str  # how many, or which
    scores: dict  # {"psnr_rgb": float, or text as published, ...}
    source: str = MEASURED
    needs: str = ""  # what it learns from
    ranked: bool = False


def text_of(key, value):
    """A score as text: a float with the digits of its kind, a published one as it was published."""
    return value if isinstance(value, str) else f"{value:{'+' if key.endswith('_gain') else ''}.{DIGITS[key.split('_')[0]]}f}"


def heading(key):
    """ "psnr_rgb" as ("RGB", "PSNR"), "lpips" as ("", "LPIPS")."""
    score, _, protocol = key.partition("_")
    return PROTOCOLS[protocol].title.partition(" (")[0] if protocol else "", score.upper()


def shorten(name, width):
    return name if len(name) <= width else "..." + name[3 - width :]


def published(dataset, keys, images):
    """The published rows of a data set that have any of the scores `keys`; of a part of it only where it has `images` images.

    Raises ImageError for a data set without published figures.
    """
    with PUBLISHED.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    names = list(dict.fromkeys(row["dataset"] for row in rows))
    if dataset not in names:
        raise ImageError(f"{PUBLISHED}: no figures of {dataset}; it has {', '.join(names)}")
    found = []
    for row in rows:
        scores = {key: row[key] for key in keys if row.get(key)}
        part = row["images"].partition(" to ")  # "1 to 40" is a part of the set
        if row["dataset"] == dataset and scores and (not part[1] or int(part[2]) - int(part[0]) + 1 == images):
            found.append(Method(row["method"], row["images"], scores, row["source"], row["needs"]))
    return found


def known(dataset):
    """Has this data set published figures?"""
    with PUBLISHED.open(encoding="utf-8", newline="") as file:
        return any(row["dataset"] == dataset for row in csv.DictReader(file))


def places(methods):
    """{(method's number, key): 1 or 2} of the best and second best, as shown, of the ranked methods where there are several."""
    ranked = [number for number, method in enumerate(methods) if method.ranked]
    found = {}
    for key in methods[ranked[0]].scores if len(ranked) > 1 else ():
        shown = {number: float(text_of(key, methods[number].scores[key])) for number in ranked}
        best = sorted(set(shown.values()), reverse=key not in EXTRA)
        found |= {(number, key): best.index(value) + 1 for number, value in shown.items() if value in best[:2]}
    return found


def overview(methods, title):
    """Means of all methods as text: four scores side by side, further ones below. methods: not empty; the first has all."""
    keys, marks = list(methods[0].scores), places(methods)
    lines = []
    for first in range(0, len(keys), 4):
        shown = keys[first : first + 4]
        heads = [heading(key) for key in shown]
        group = [f"{head if n % 2 == 0 else '':>17} " for n, (head, _) in enumerate(heads) if n % 2 == 0]
        lines += [""] * bool(lines) + [f"{title:{METHOD_WIDTH + 12}}" + "".join(group)]
        lines.append(f"{'method':{METHOD_WIDTH}}{'images':>12}" + "".join(f"{name:>8} " for _, name in heads))
        source = MEASURED
        for number, method in enumerate(methods):
            if not any(key in method.scores for key in shown):
                continue
            if method.source != source:
                source = method.source
                lines.append(f"{source}:")
            cells = (f"{text_of(key, method.scores[key]) if key in method.scores else '':>8}"
                     + " *'"[marks.get((number, key), 0)] for key in shown)
            lines.append(f"{shorten(method.name, METHOD_WIDTH):{METHOD_WIDTH}}{method.images:>12}" + "".join(cells))
    lines = [line.rstrip() for line in lines]
    return "\n".join(lines + notes(methods, marks, "* best", "' second best"))


def notes(methods, marks, best, second):
    """What has to be said below an overview, a list of lines."""
    ranking = [f"{best}, {second} of the results on all images; nothing else is ranked."]
    others = ["A published figure is a mean over the images in its row, not over ours."]
    return ranking * bool(marks) + others * any(method.source != MEASURED for method in methods)


def overview_markdown(methods):
    """The same as one Markdown table, best bold, second best in italics; pairs of scores share a column."""
    keys, marks = list(methods[0].scores), places(methods)
    columns = [[key, f"ssim_{key[5:]}"] if key.startswith("psnr") else [key] for key in keys if not key.startswith("ssim")]

    def cell(number, key):
        scores = methods[number].scores
        text = text_of(key, scores[key]) if key in scores else ""
        text = text[1:] if text.startswith("0.") and key.startswith("ssim") else text
        mark = ("", "**", "*")[marks.get((number, key), 0)]
        return f"{mark}{text}{mark}"

    heads = [f"{heading(column[0])[0]} {' / '.join(heading(key)[1] for key in column)}".strip() for column in columns]
    lines = [["method", "needs", "images", *heads, "source"], ["---"] * (4 + len(columns))]
    for number, method in enumerate(methods):
        cells = [" / ".join(filter(None, (cell(number, key) for key in column))) for column in columns]
        lines.append([method.name, method.needs, method.images, *cells, method.source])
    below = notes(methods, marks, "**Best**", "*second best*")
    return "\n".join(markdown_lines(lines) + [""] * bool(below) + below)


def markdown_lines(lines):
    return ["|" + "|".join(f" {cell} " if cell else " " for cell in line) + "|" for line in lines]


def gains(result, rainy):
    """A row of the table: the scores of a result, those of its rainy input (keys + "_input") and the differences ("_gain")."""
    row = dict(result)
    for key, value in rainy.items():
        row[f"{key}_input"] = value
        row[f"{key}_gain"] = 0.0 if result[key] == value else result[key] - value
    return row


def groups_of(rows):
    """What a row holds of each score: the result alone, or the input and the gain as well."""
    return ["", "_input", "_gain"] if any(key.endswith("_gain") for key in next(iter(rows.values()))) else [""]


def mean_name(rows, total):
    """The name of the row of means; it says so where not all `total` images are in it."""
    return f"mean of {len(rows)}" + f" of {total}" * (total not in (None, len(rows)))


def image_table(rows, keys, title, total=None):
    """A row an image and the mean, as text of at most 80 columns.

    rows: {name: row of `scores` or `gains`}, not empty. keys: one or two scores, e.g. ["psnr_y", "ssim_y"].
    total: how many images there should be.
    """
    groups = groups_of(rows)
    keys = [key + group for group in groups for key in keys]
    rows = {name: {key: row[key] for key in keys} for name, row in rows.items()}
    perfect = sum(not all(map(math.isfinite, row.values())) for row in rows.values())

    def line(name, row):
        return f"{shorten(name, NAME_WIDTH):{NAME_WIDTH}}" + "".join(f"{text_of(key, row[key]):>9}" for key in keys)

    lines = [title]
    if len(groups) > 1:
        lines.append(" " * NAME_WIDTH + "".join(f"{head:>{9 * len(keys) // 3}}" for head in ("result", "input", "gain")))
    lines.append(f"{'image':{NAME_WIDTH}}" + "".join(f"{key.split('_')[0].upper():>9}" for key in keys))
    lines += [line(name, row) for name, row in rows.items()]
    lines.append(line(mean_name(rows, total), mean_scores(list(rows.values()))))
    if perfect:
        lines.append(f"Equal to the target: {perfect}; an infinite PSNR is left out of the mean PSNR.")
    return "\n".join(lines)


def table(rows, protocol, total=None):
    """`image_table` of one protocol."""
    return image_table(rows, [f"psnr_{protocol}", f"ssim_{protocol}"], PROTOCOLS[protocol].title, total)


def images_markdown(results, keys, title, totals):
    """A Markdown table, a row an image and the mean; a column for the input and a column and its gain for each method.

    results: {method: {image: row}}; keys, title: as in `image_table`. totals: {method: how many images there should be}.
    """
    columns = [(name, "", name) for name in results]
    if len(groups_of(next(iter(results.values())))) > 1:
        columns = [("rainy input", "_input", name) for name in list(results)[:1]]
        columns += [column for name in results for column in ((name, "", name), ("gain", "_gain", name))]
    names = dict.fromkeys(image for rows in results.values() for image in rows)
    # the input's scores are the same for every method that has the image
    anyone = {image: next(rows[image] for rows in results.values() if image in rows) for image in names}

    def cells(get):
        return [" / ".join(text_of(key + group, row[key + group]) for key in keys) if (row := get(method, group)) else "-"
                for _, group, method in columns]

    what = " / ".join(heading(key)[1] for key in keys)
    lines = [["image", *(head for head, _, _ in columns)], ["---"] * (len(columns) + 1)]
    for image in names:
        lines.append([image, *cells(lambda method, group: anyone[image] if group == "_input" else results[method].get(image))])
    means = {name: mean_scores(list(rows.values())) for name, rows in results.items()}
    whole = mean_scores(list(anyone.values()))
    full = all(len(rows) == totals[name] for name, rows in results.items())
    lines.append(["mean" if full else "mean of those scored",
                  *cells(lambda method, group: whole if group == "_input" else means[method])])
    return "\n".join([f"{title}: {what}", "", *markdown_lines(lines)])


def write_text(path, text):
    """Write a text file, whole or not at all; its folder is made if needed. Raises ImageError where that cannot be done."""
    try:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        write_bytes(path, text.encode())
    except OSError as error:
        raise ImageError(f"{path}: cannot be written ({error.strerror})") from None


def check_file(path):
    """Raise ImageError unless a file can be written there: before the work, not after."""
    check_results_folder(Path(path).parent)
    if Path(path).is_dir():
        raise ImageError(f"{path}: a folder, but a file is to be written there; name another one")


def csv_text(rows):
    """Dicts of text or float as comma-separated values, floats with six decimals; what a row lacks is left empty."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(dict.fromkeys(key for row in rows for key in row)), lineterminator="\n")
    writer.writeheader()
    writer.writerows({key: f"{value:.6f}" if isinstance(value, float) else value for key, value in row.items()} for row in rows)
    return text.getvalue()

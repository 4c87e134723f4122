"""The page of utils.figures: photographs in all versions, with a divider to drag between two, and their scores."""
import base64
import json
import os
from pathlib import Path
from urllib.parse import quote

from tqdm import tqdm

from utils.evaluate import gain, target_stem
from utils.image import ImageError, check_size, list_images, write_bytes
from utils.metrics import mean_scores, scores
from utils.photograph import photograph_bytes, read_photograph

TEMPLATE = Path(__file__).with_name("page.html")


def address(path, photograph, folder, embed=False):
    """Return where a page in `folder` finds an image: a relative link, or a data URI of the file, or of a TIFF as PNG."""
    tiff = photograph.format == "TIFF"  # most browsers show none
    if not (tiff or embed):
        return quote(os.fsencode(Path(os.path.relpath(path, folder)).as_posix()))
    data = photograph_bytes(photograph.image, photograph) if tiff else path.read_bytes()
    return f"data:image/{'png' if tiff else photograph.format.lower()};base64,{base64.b64encode(data).decode()}"


def read_version(path, like, failures):
    """Return the `Photograph` at a path, or None and a line in `failures`. like: the image, and its path, of the same size."""
    try:
        photograph = read_photograph(path)
        if like:
            check_size(photograph.image, path, *like)
        return photograph
    except ImageError as error:
        failures.append(str(error))


def score_versions(versions, target):
    """Return {score: value, "gain_" + score: value less that of the first version} for each `Photograph`, None for None."""
    rows = [version and scores(version.image, target.image, ["rgb"]) for version in versions]
    return [row and row | {f"gain_{key}": value for key, value in gain(row, rows[0]).items()} for row in rows]


def list_versions(dataset, rainy, results):
    """Return [(label, {name: path})] of what may be scored, the photographs first, and of the layers and the targets."""
    clean = list_images(dataset / "target", optional=True)
    targets = {name: clean[target_stem(clean, name)] for name in rainy if target_stem(clean, name) in clean}
    folders = results or {"fused reference": dataset / "sdr(fuse)", "derained": dataset / "result"}
    derained = [(label, list_images(folder, optional=not results)) for label, folder in folders.items()]
    others = [("likely rain", list_images(dataset / "ldgp", optional=True)), ("target", targets)]
    return [[pair for pair in pairs if pair[1]] for pairs in ([("rainy", rainy), *derained], others)]


def write_page(path, dataset, rainy, results=None, embed=False):
    """Write a page of photographs of a data set in all versions that there are; return one line for each that has no place.

    rainy: {name: path}. results: {label: folder}; None for those of the data set. embed: put the images into the page instead
    of links from its folder. Raises ImageError for a folder of `results` that is missing or holds no image.
    """
    scored, others = list_versions(Path(dataset), rainy, results)
    labels, files = zip(*scored, *others)
    cards, failures = [], []
    for name in tqdm(rainy, unit="image", disable=None):
        paths = [images.get(name) for images in files]
        first = read_version(paths[0], None, failures)
        if not first:
            continue
        like = first.image, paths[0]
        versions = [first, *(place and read_version(place, like, failures) for place in paths[1:])]
        rows = [None] * len(labels)
        if others and labels[-1] == "target" and versions[-1]:
            try:
                rows = score_versions(versions[: len(scored)], versions[-1])
            except ImageError as error:  # too small
                failures.append(f"{paths[0]}: {error}")
        addresses = [version and address(place, version, Path(path).parent, embed) for place, version in zip(paths, versions)]
        cards.append({"name": name, "size": first.image.shape[1::-1], "images": addresses, "scores": rows})
    by_version = [[row for row in rows if row] for rows in zip(*(card["scores"] for card in cards))]
    means = [{"version": number, "images": len(rows), **mean_scores(rows)} for number, rows in enumerate(by_version) if rows]
    last = {"version": len(scored if scored[1:] else labels) - 1}
    best = max(means[:0:-1], key=lambda mean: (mean["images"], mean["psnr_rgb"]), default=last)["version"]
    data = {"title": Path(dataset).resolve().name, "versions": labels, "best": best, "means": means, "cards": cards}
    page = TEMPLATE.read_text(encoding="utf-8").replace("/*data*/null", json.dumps(data).replace("<", r"\u003c"))
    write_bytes(path, page.encode())
    return failures

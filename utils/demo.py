"""Run the fast recipe without learning on the demo set, score the results, and draw each photograph before and after.

    python -m utils.demo
"""
import shlex
import subprocess
import sys
import time
from pathlib import Path

from utils import cli
from utils.figures import draw
from utils.image import list_images, png_bytes, write_bytes
from utils.page import write_page

ROOT = Path(__file__).resolve().parent.parent
FOLDER = "./dataset/Demo/"
STAGES = [
    ["ldgp.py", "--dataset=Demo", "--recipe=fast"],
    ["sdr.py", f"--input_path={FOLDER}input/", "--recipe=fast"],
    ["sdrl_online.py", f"--rainy_data_path={FOLDER}", "--recipe=fast", "--steps=0"],
    ["-m", "utils.evaluate", f"{FOLDER}result/", f"{FOLDER}target/", f"--input_path={FOLDER}input/", "--protocol=rgb"],
]


def main(args):
    began = time.perf_counter()
    for command in STAGES:
        print(f"\n$ python {shlex.join(command)}", flush=True)
        code = subprocess.run([sys.executable, *command], cwd=ROOT).returncode
        if code:
            return code
    folder = ROOT / FOLDER
    picture = folder / "before_after.png"
    rainy, page = list_images(folder / "input"), folder / "page.html"
    write_bytes(picture, png_bytes(draw("before_after", folder, list(rainy))))
    write_page(page, folder, rainy)
    print(f"\nutils.demo: done in {time.perf_counter() - began:.0f} s; before and after side by side in {picture}, "
          f"and with a divider to drag in {page}")
    return 0


if __name__ == "__main__":
    cli.start(main, cli.Parser(__doc__))

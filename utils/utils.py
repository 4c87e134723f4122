"""What Python takes for this package where a command is started as a file, utils/derain.py: it says how to call it."""
import sys
from pathlib import Path

name = Path(sys.argv[0]).stem
sys.exit(f"{name}.py: it is a part of a package; in the folder above, run: python -m utils.{name}")

"""What the scripts share, and commands. To be imported before torch, whose threads then sleep while they wait for each other."""
import os

# Read when torch is loaded. Threads that wait awake take the core, beside another busy process, from the one they wait for.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

"""What the scripts share, and commands. Imported before torch, it lets the threads of torch sleep while they wait."""
import os

# Read when torch is loaded. Threads that wait awake take the core, beside another busy process, from the one they wait for.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

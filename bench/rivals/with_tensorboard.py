"""TensorBoard's event file by tensorboardX. Run by its own Python; the last line is JSON."""

import json
import sys
import tempfile
import time

from tensorboardX import SummaryWriter

_KEYS = [f"train/layer{i:02d}/some_metric" for i in range(10)]


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        writer = SummaryWriter(folder)
        began = time.perf_counter()
        num_steps = 2000
        for step in range(num_steps):
            for key in _KEYS:
                writer.add_scalar(key, 1.25, step)
        cost = (time.perf_counter() - began) / num_steps * 1e6
        writer.close()
        flushed = time.perf_counter() - began
    found = {"call_us": cost, "points_per_s": num_steps * len(_KEYS) / flushed}
    sys.stdout.write(json.dumps(found) + "\n")


if __name__ == "__main__":
    main()

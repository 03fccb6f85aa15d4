"""trackio: what a call costs the training process. Run by trackio's own Python; the last line is JSON."""

import json
import os
import sys
import tempfile
import time

_KEYS = [f"train/layer{i:02d}/some_metric" for i in range(10)]


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        os.environ["TRACKIO_DIR"] = folder
        import trackio

        trackio.init(project="bench", embed=False)
        values = dict.fromkeys(_KEYS, 1.25)
        began = time.perf_counter()
        num_calls = 2000
        for step in range(num_calls):
            trackio.log(values, step=step)
        cost = (time.perf_counter() - began) / num_calls * 1e6
        trackio.finish()
        flushed = time.perf_counter() - began
    found = {"call_us": cost, "points_per_s": num_calls * len(_KEYS) / flushed}
    sys.stdout.write("\n" + json.dumps(found) + "\n")


if __name__ == "__main__":
    main()

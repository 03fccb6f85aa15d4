"""Places of points on the axis of a picture: seconds of training, wall time, tokens, epochs of the data."""

from collections.abc import Mapping

import numpy as np

from tunesmith.api.metrics.v1 import metrics_pb2
from tunesmith_metrics.series import Curve, Floats

TOKENS, EPOCH = "train/num_tokens", "train/epoch"
# Which curves an axis is made from. The trainer writes the tokens at every record, so they tell best when an
# attempt began and ended.
SOURCES: Mapping[int, str] = {
    metrics_pb2.AXIS_RELATIVE_TIME: TOKENS,
    metrics_pb2.AXIS_TOKENS: TOKENS,
    metrics_pb2.AXIS_EPOCH: EPOCH,
}


class Axis:
    """An axis of one job. `source` is the curve that `SOURCES` names, None when the job has none."""

    def __init__(self, kind: int, source: Curve | None) -> None:
        self._kind, self._source = kind, source

    @property
    def usable(self) -> bool:
        """False when the job has no curve that the axis is made from."""
        return self._source is not None or self._kind not in (metrics_pb2.AXIS_TOKENS, metrics_pb2.AXIS_EPOCH)

    def places(self, curve: Curve) -> Floats | None:
        """Where the points of a curve stand, shape (n,); None when the axis is the step."""
        if self._kind in (metrics_pb2.AXIS_UNSPECIFIED, metrics_pb2.AXIS_STEP):
            return None
        if self._kind == metrics_pb2.AXIS_WALL_TIME:
            return curve.times_us / 1e6
        if self._kind == metrics_pb2.AXIS_RELATIVE_TIME:
            return self._trained(curve)
        assert self._source is not None, "asked before: usable"
        steps, values = self._source.steps, self._source.values
        if steps[0] > 0:  # before the first record nothing was seen
            steps, values = np.append(0, steps), np.append(0.0, values)
        return np.interp(curve.steps, steps, values)

    def _trained(self, curve: Curve) -> Floats:
        spans = _spans(curve)
        if self._source is not None:
            spans |= _spans(self._source)
        epochs, shifts, trained = [], [], 0
        for epoch, (low, high) in sorted(spans.items()):
            epochs.append(epoch)
            shifts.append(low - trained)
            trained += high - low
        shift = np.array(shifts, dtype=np.int64)[np.searchsorted(epochs, curve.epochs)]
        return np.asarray(curve.times_us - shift, dtype=np.float64) / 1e6


def _spans(curve: Curve) -> dict[int, tuple[int, int]]:
    """The first and last time of each attempt in a curve; of an attempt only the steps count that no later
    one ran again."""
    bounds = np.append(0, np.flatnonzero(curve.epochs[1:] != curve.epochs[:-1]) + 1)
    lows = np.minimum.reduceat(curve.times_us, bounds).tolist()
    highs = np.maximum.reduceat(curve.times_us, bounds).tolist()
    spans: dict[int, tuple[int, int]] = {}
    for epoch, low, high in zip(curve.epochs[bounds].tolist(), lows, highs, strict=True):
        known = spans.get(epoch, (low, high))
        spans[epoch] = min(known[0], low), max(known[1], high)
    return spans

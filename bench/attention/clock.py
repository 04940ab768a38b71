"""Times on the device."""
import torch

ROUNDS = 11


class Times:
    """The time of one call in milliseconds, in each round."""

    def __init__(self, rounds):
        self.rounds = rounds
        ordered = sorted(rounds)
        self.median, self.least, self.most = ordered[len(ordered) // 2], ordered[0], ordered[-1]


def captured(runs, target_ms):
    """A CUDA graph of calls that together take about `target_ms`, and their number. A graph keeps the
    host's time out of the measurement. `runs` are calls on different inputs, which take turns so
    that inputs are not still in the cache."""
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        for run in runs:
            run()
        torch.cuda.synchronize()
        count = max(1, min(200, int(target_ms / max(replay(runs[0]), 1e-3))))
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=stream):
            for i in range(count):
                runs[i % len(runs)]()
    return graph, count


def replay(call):
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    call()
    end.record()
    end.synchronize()
    return start.elapsed_time(end)


def measure(contestants, target_ms=6.0):
    """Times by name. All contestants take turns in every round, so that all run at the same clock
    rates: a device under full load lowers them within milliseconds. Between turns the cache is filled
    with other data, so that no contestant profits from the data of the one before it."""
    graphs = {name: captured(runs, target_ms) for name, runs in contestants.items()}
    rounds = {name: [] for name in graphs}
    other = torch.zeros(1 << 26, device="cuda")
    for i in range(ROUNDS + 2):
        for name, (graph, count) in graphs.items():
            other.sum()
            time = replay(graph.replay) / count
            if i >= 2:
                rounds[name].append(time)
    return {name: Times(times) for name, times in rounds.items()}

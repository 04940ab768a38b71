"""The table and the plot of a run: `python bench/attention/report.py FILE.json` writes both again."""
import json, sys

NAMES = {"butterfly": "Hopper kernel", "portable": "portable kernel", "flex": "FlexAttention",
         "cudnn": "cuDNN", "fa2": "FlashAttention-2"}


def figure(times, name, digits=3):
    if name not in times:
        return ""
    row = times[name]
    return f"{row['median']:.{digits}f} ({row['least']:.{digits}f} to {row['most']:.{digits}f})"


def off(row):
    return f"{100 * (row['predicted'] / row['median'] - 1):+.0f} %"


def table(head, rows):
    line = lambda cells: "| " + " | ".join(str(c) for c in cells) + " |"
    return "\n".join([line(head), "|" + "---|" * len(head), *map(line, rows)])


def prefill(results):
    peak = results["matmul_tflops"]
    rows = []
    for row in results["prefill"]:
        if row["group"] != "prefill":
            continue
        times = row["times"]
        ours = times["butterfly"]
        over = lambda name: f"{times[name]['median'] / ours['median']:.2f}" if name in times else ""
        met = "" if row["bar"] is None else "met" if ours["median"] <= row["bar"] else "MISSED"
        if row["ratio"] and times["flex"]["median"] / ours["median"] < row["ratio"]:
            met += f", FlexAttention {row['ratio']} MISSED"
        rows.append([
            row["pattern"], row["tokens"], row["head_dim"], figure(times, "butterfly"), row["bar"] or "", met,
            f"{ours['tile_tflops']:.0f}", f"{ours['exact_tflops']:.0f}", f"{100 * ours['tile_tflops'] / peak:.0f} %",
            f"{ours['predicted']:.3f}", off(ours), f"{ours['error']:.4f}",
            figure(times, "flex"), over("flex"), figure(times, "portable"),
            f"{times['flex']['median'] / times['portable']['median']:.2f}" if "flex" in times else "",
            off(times["portable"]), figure(times, "cudnn"), figure(times, "fa2"),
        ])
    head = ["pattern", "T", "D", "Hopper kernel, ms", "bar", "", "TFLOP/s by tiles", "by pairs", "of matmul",
            "predicted", "off by", "error", "FlexAttention, ms", "over ours", "portable kernel, ms",
            "FlexAttention over it", "its prediction", "cuDNN dense", "FA2 dense"]
    return table(head, rows)


def others(results):
    """Groups of few q heads, and batches."""
    rows = []
    for row in results["prefill"]:
        if row["group"] not in ("heads", "batch"):
            continue
        times = row["times"]
        ours = times["butterfly"]
        over = times["flex"]["median"] / ours["median"]
        rows.append([
            *row["heads"], row["batch"], row["tokens"], row["head_dim"], figure(times, "butterfly"),
            f"{ours['tile_tflops']:.0f}", f"{100 * ours['tile_tflops'] / results['matmul_tflops']:.0f} %",
            f"{ours['bytes'] / ours['median'] / 1e9:.2f}", f"{ours['predicted']:.3f}", off(ours), f"{ours['error']:.4f}",
            figure(times, "flex"), f"{over:.2f}", "met" if over >= row["ratio"] else "MISSED",
        ])
    head = ["Hq", "Hkv", "B", "T", "D", "Hopper kernel, ms", "TFLOP/s by tiles", "of matmul", "TB/s", "predicted", "off by",
            "error", "FlexAttention, ms", "over ours", "bar: 2.2"]
    return table(head, rows) if rows else "not run"


def degrees(results):
    rows = [row for row in results["prefill"] if row["group"] == "degree"]
    if not rows:
        return "not run"
    of_block = [r["times"]["butterfly"]["median"] / r["degree"] for r in rows]
    base = of_block[-1]
    return table(["mean degree", "ms", "µs a block of the mean row", "against the largest", "predicted", "off by"], [
        [f"{r['degree']:.2f}", figure(r["times"], "butterfly"), f"{1e3 * t:.1f}", f"{100 * (t / base - 1):+.0f} %",
         f"{r['times']['butterfly']['predicted']:.3f}", off(r["times"]["butterfly"])]
        for r, t in zip(rows, of_block)])


def decodes(results):
    rows = []
    for row in results["decode"]:
        times = row["times"]
        micro = lambda name: f"{1e3 * times[name]['median']:.2f} ({1e3 * times[name]['least']:.2f} to {1e3 * times[name]['most']:.2f})" if name in times else ""
        ours = times["butterfly"]
        bandwidth = ours["bytes"] / ours["median"] / 1e9
        met = "" if row["bar"] is None else "met" if 1e3 * ours["median"] <= row["bar"] else "MISSED"
        rows.append([row["batch"], row["tokens"], micro("butterfly"), row["bar"] or "", met,
                     f"{bandwidth:.2f}", f"{100 * bandwidth / results['copy_tb_per_s']:.0f} %",
                     f"{1e3 * ours['predicted']:.2f}", off(ours), f"{ours['error']:.4f}",
                     micro("portable"), micro("cudnn"), micro("fa2")])
    return table(["B", "keys", "Hopper kernel, µs", "bar", "", "TB/s", "of a copy", "predicted", "off by", "error",
                  "portable kernel, µs", "cuDNN, all keys", "FA2, all keys"], rows)


def overhead(results):
    """Compares a sparse pattern that covers every block with dense attention, round by round."""
    rows = {row["pattern"]: row["times"]["butterfly"] for row in results["prefill"]}
    if "dense by bands" not in rows:
        return "not run"
    pairs = zip(rows["dense by bands"]["rounds"], rows["dense"]["rounds"])
    ratios = sorted(a / b for a, b in pairs)
    return (f"The bands of the sparse pattern over every block take {100 * (ratios[len(ratios) // 2] - 1):+.1f} % "
            f"({100 * (ratios[0] - 1):+.1f} to {100 * (ratios[-1] - 1):+.1f}) of the time of `causal & all`.")


def markdown(results):
    return f"""# Attention on {results['device']}

`python bench/attention/run.py`: Hq 16, Hkv 4, batch 1 where nothing else is said, bf16, block 128, stage 3; medians of 11
replays of a graph of launches whose inputs take turns, with the least and the most, by events; all
of one shape take turns in every round. torch {results['torch']}. In the same run a bf16 matmul of 8192 reaches {results['matmul_tflops']:.0f} TFLOP/s, a copy
{results['copy_tb_per_s']:.2f} TB/s, bytes read and written. *Error*: of o by the norm, against f32 on the device.

## Prefill

{prefill(results)}

{overhead(results)}

## Other heads and batches, the standard pattern

TB/s are those of the bytes that have to be moved at least.

{others(results)}

## From degree 2 to 64, T 65536, D 128

{degrees(results)}

## Decode, one query, D 128

{decodes(results)}
"""


def plot(results, path):
    import matplotlib
    matplotlib.use("svg")
    from matplotlib import pyplot
    rows = [row for row in results["prefill"] if row["group"] == "prefill"]
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(13, 4.5))
    names = [name for name in NAMES if any(name in row["times"] for row in rows)]
    for i, name in enumerate(names):
        at = [(x + i * 0.16, row["times"][name]["median"]) for x, row in enumerate(rows) if name in row["times"]]
        left.bar([x for x, _ in at], [y for _, y in at], 0.15, label=NAMES[name])
    left.set_yscale("log")
    left.set_ylabel("ms")
    left.set_xticks([x + 0.3 for x in range(len(rows))],
                    [f"{r['pattern']}\n{r['tokens']}\nD {r['head_dim']}" for r in rows], fontsize=7)
    left.legend(fontsize=7)
    left.set_title("Prefill")
    for name in NAMES:
        at = [(r["tokens"], 1e3 * r["times"][name]["median"]) for r in results["decode"]
              if r["batch"] == 1 and name in r["times"]]
        if at:
            right.plot(*zip(*at), marker="o", label=NAMES[name])
    right.set_xscale("log", base=2)
    right.set_yscale("log")
    right.set_xlabel("keys")
    right.set_ylabel("µs")
    right.set_title("Decode, one query")
    right.legend(fontsize=7)
    figure.suptitle(results["device"])
    figure.tight_layout()
    matplotlib.rcParams["svg.hashsalt"] = "butterfly"
    figure.savefig(path, metadata={"Date": None})


def write(path):
    with open(path) as file:
        results = json.load(file)
    stem = path.removesuffix(".json")
    with open(f"{stem}.md", "w") as file:
        file.write(markdown(results))
    try:
        plot(results, f"{stem}.svg")
    except ImportError:
        print(f"no plot: pip install matplotlib, then python bench/attention/report.py {path}")


if __name__ == "__main__":
    write(sys.argv[1])

"""The reports of `scripts/quality` → docs/quality.md. Exit code 1 if a bar is not met.

In:  a folder with the JSON report of each step, beside its command and its seconds of all cores together.
Out: a page of tables, with the commands and the device.
"""

import json
import os
import pathlib
import platform
import shlex
import sys

# The most that the perplexity may rise, in percent, on text that the choice has not seen.
BARS = {
    "window-50": 1.5,
    "butterfly-50": 1.5,
    "routed-50": 1.0,
    "window-75": 6.5,
    "butterfly-75": 6.5,
    "routed-75": 4.5,
}
SHARES = {"50": "half", "75": "three quarters", "100": "all"}


class Results:
    """What the steps reported."""

    def __init__(self, folder):
        self.folder = folder
        self.ranking, self.by_content = self.report("ranking-near"), self.report("ranking-content")
        self.half, self.most = self.report("evaluate-half"), self.report("evaluate-most")
        self.policies = {policy["name"]: policy for policy in self.half["policies"] + self.most["policies"]}
        # The names of the patterns, in the order of the command line.
        self.names = [policy["name"].removesuffix("-50") for policy in self.half["policies"]]

    def report(self, step):
        return json.loads((self.folder / f"{step}.report").read_text())

    def pattern(self, name):
        return (self.folder / f"{name}-100.pattern").read_text().strip()

    def steps(self):
        """The command and the seconds of each step, in the order in which they ran."""
        files = sorted(self.folder.glob("*.seconds"), key=lambda file: file.stat().st_mtime_ns)
        # The last word of a command is the digest of the program.
        words = (shlex.split(file.with_suffix(".command").read_text())[:-1] for file in files)
        return [(shlex.join(words), float(file.read_text())) for words, file in zip(words, files)]

    def found(self, attention):
        """How many codes were found, and of how many; None where that was not asked."""
        for row in self.half["retrieval"]["by_length"]:
            if row["attention"] == attention:
                return round(row["exact"] * row["prompts"]), row["prompts"]

    def missed(self):
        """What is worse than it has to be."""
        dense, _ = self.found("dense")
        for name, policy in self.policies.items():
            bar = BARS.get(name)
            if bar is not None and rise(policy) > bar:
                yield f"{name}: perplexity rises by {rise(policy):.2f} %, instead of at most {bar} %"
            found = self.found(name)
            if found and found[0] < dense:
                yield f"{name}: {found[0]} codes are found, {dense} by dense attention"


def rise(policy):
    """What a policy adds to the perplexity, in percent."""
    return 100 * (policy["perplexity_ratio"] - 1)


def table(head, rows):
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def escaped(text):
    """For a cell of a table."""
    return text.replace("|", "\\|")


def figures(results):
    found = results.found("dense")
    rows = [["none", "dense", f"{results.half['dense_perplexity']:.3f}", "", "", "", "", "{} of {}".format(*found)]]
    for share, heads in SHARES.items():
        for name in results.names:
            policy = results.policies.get(f"{name}-{share}")
            if policy is None:
                continue
            bar = BARS.get(f"{name}-{share}")
            found = results.found(f"{name}-{share}")
            rows.append([
                heads,
                name,
                f"{policy['perplexity']:.3f}",
                f"**{rise(policy):+.2f} %**",
                f"{bar:+.1f} %" if bar else "",
                f"{policy['kl_divergence']:.4f}",
                f"{100 * policy['top1_agreement']:.1f} %",
                "{} of {}".format(*found) if found else "",
            ])
    head = ["heads replaced", "pattern", "perplexity", "rise", "at most", "KL, nats", "same top token", "codes found"]
    return table(head, rows)


def by_position(results):
    names = [f"{name}-{share}" for share in SHARES for name in results.names]
    names = [name for name in names if name in results.policies]
    rows = []
    for i, bucket in enumerate(results.half["by_position"]):
        row = [f"{bucket['from']} to {bucket['end'] - 1}", f"{bucket['dense_perplexity']:.3f}"]
        for name in names:
            means = results.policies[name]["by_position"][i]
            row.append(f"{100 * (means['perplexity'] / means['dense_perplexity'] - 1):+.2f} %")
        rows.append(row)
    heads = [f"{name.split('-')[0]}, {SHARES[name.split('-')[1]]}" for name in names]
    return table(["positions", "dense perplexity", *heads], rows)


def by_depth(results):
    rows = {}
    attentions = ["dense", *(policy["name"] for policy in results.half["policies"])]
    for row in results.half["retrieval"]["by_depth"]:
        rows.setdefault(f"{100 * row['depth']:.0f} %", {})[row["attention"]] = row
    cells = [[depth, *("yes" if row[who]["exact"] == 1 else "no" for who in attentions)] for depth, row in rows.items()]
    return table(["depth", "dense", *(f"{name}, half" for name in results.names)], cells)


def curve(results):
    def cells(point):
        return [
            f"{point['kl_nats']:.4f}",
            f"{100 * (point['perplexity_ratio'] - 1):+.2f} %",
            f"{100 * point['top1']:.1f} %",
        ]

    pairs = zip(results.ranking["curve"], results.by_content["curve"], strict=True)
    rows = [[f"{100 * near['share']:.0f} %", *cells(near), *cells(content)] for near, content in pairs]
    figures = ["KL, nats", "rise of perplexity", "same top token"]
    return table(["heads replaced", *(f"{name}, near" for name in figures), *(f"{name}, by content" for name in figures)], rows)


def uneven(results):
    """The damage of a head in the middle and of the worst, and what a tenth of the heads does, in percent of all."""
    damages = sorted(x for row in results.ranking["damage"] for x in row)
    worst = damages[-len(damages) // 10 :]
    return damages[len(damages) // 2], damages[-1], 100 * sum(worst) / sum(damages)


def device(report):
    cpu = next(
        (line.split(":")[1].strip() for line in open("/proc/cpuinfo") if "model name" in line), platform.processor()
    )
    return f"{cpu}, {os.cpu_count()} cores ({report['device_name']} kernels, {report['dtype']})"


def beside(results):
    """Each other pattern beside the window, at equal shares of heads."""
    window, *others = results.names
    for name in others:
        pairs = ([f"{name}-{share}", f"{window}-{share}", heads] for share, heads in SHARES.items())
        said = ", ".join(
            f"{heads}: {rise(results.policies[a]):+.2f} % and {rise(results.policies[b]):+.2f} %"
            for a, b, heads in pairs
            if a in results.policies
        )
        yield f"- `{name}` and the window, by the share of heads that is replaced. {said[0].upper()}{said[1:]}."


def page(results):
    half, ranking = results.half, results.ranking
    window = results.names[0]
    patterns = [[name, f"`{escaped(results.pattern(name))}`"] for name in results.names]
    middle, largest, tenth = uneven(results)
    share, plain = results.policies[f"{window}-50"], results.policies[f"{window}-100"]
    steps = results.steps()
    seconds = sum(seconds for _, seconds in steps)
    commands = "\n".join(f"butterfly {command} # {seconds:.0f}" for command, seconds in steps)
    book = "debian-handbook " + (results.folder / "book").read_text().strip()
    retrieval = half["retrieval"]["by_length"][0]
    newline = "\n"
    return f"""# What replacing attention costs

Written by `scripts/quality`, which measures all of it again: on the CPU, with a package of Debian and one of PyPI.

The model is SmolLM2-135M-Instruct: 30 layers of 3 KV heads, weights of 4 bits, trained with dense attention and
never with a pattern. The text is the Debian Administrator's Handbook ({book}). Heads are
chosen on the second half of the book; all figures but those of the choice are of the first half,
{half['tokens'] // half['window']} × {half['window']} tokens: {half['predicted']} predictions from position {half['from']} on. For the codes, a sentence with a code of five digits is
hidden in {retrieval['prompts']} prompts of {retrieval['tokens']} tokens, each time at another depth, and a code is found if the model
says all of its digits.

{table(["pattern", "text"], patterns)}

By each of them a query sees at most 512 keys. Policies keep the last 64 tokens of a prompt, and all that is generated,
dense (`tail(64)`); in *all* heads the window stands alone.

## Figures

{figures(results)}

The heads that are not replaced stay dense. *At most* is the bar of `scripts/quality`. KL is the divergence of the
predictions from the dense ones, *same top token* how often both find the same token most likely.

## Rise of perplexity by position

{by_position(results)}

## Codes by depth

{by_depth(results)}

## How many heads

Each head was replaced alone in a window of {ranking['window']} tokens, by a pattern that is as narrow there as 512 keys are
in a longer text. The heads that bear a window are not those that bear a choice by content, so there are two orders:

- *near*, for `window` and `butterfly`: by `{ranking['replaces'].splitlines()[-1]}`;
- *by content*, for `routed`: by `{results.by_content['replaces'].splitlines()[-1]}`.

Replaced together, in this order, on the text of the choice and by the same narrow pattern:

{curve(results)}

Damage is uneven: with the window, {middle:.4f} nats by the head in the middle, {largest:.4f} by the worst, and {tenth:.0f} % of
the sum by a tenth of the heads.

## How to choose

1. `butterfly calibrate -m MODEL --text mine.txt --share 0.5 -o half.json`, with text like what the model is to read:
   prose without repetitions hides which heads look back far. The heads differ from model to model.
2. If what you read is longer than the windows that you can afford to calibrate on, measure the heads by a narrower
   pattern, as here, and choose with the one that you want: `--from half.json --pattern '…'`.
3. Begin with half of the heads. Here that costs {rise(share):.2f} % of perplexity, with a window and a sink.
4. Replace more (`--from half.json --share 0.75`) if `butterfly eval --policy half.json --policy more.json --tasks
   needle,kv --lengths …` says on your own text that you can afford it. Perplexity hides what retrieval loses: look at
   both.
5. Keep the tail. It costs next to nothing, and the question at the end of a prompt sees all of it.

## Beside a plain window

A window and a sink in every head, without measuring anything, is the obvious thing to do. Here it raises the perplexity
by {rise(plain):.1f} %; in the half of the heads that it harms least, by {rise(share):.2f} %. What gains most is the
choice of heads.

{newline.join(beside(results))}

`routed` computes scores of blocks beside its attention: `explain` says how many FLOP that is. Means of four keys by
every fourth query, as here, take as many FLOP as means of sixteen by every query, and four times the memory; they find more.

Far partners (`partner`) are there for reach: `butterfly prove` shows which earlier tokens a stack of layers passes on.
The rows above say whether that pays in a model that was not trained with them.

## What these figures are not

One small model, one English book, {half['predicted']} predictions, {retrieval['prompts']} codes: a difference of a few tenths of a percent,
or of one code, says little, and other text gives other figures. Measure your own model on your own text.

## How this was measured

On {device(half)}. The steps took {seconds / 60:.0f} minutes of processor time, which two cores do in half
as long; behind each command stand its seconds.

```sh
{commands}
```
"""


def main(folder, output):
    results = Results(pathlib.Path(folder))
    pathlib.Path(output).write_text(page(results), encoding="utf-8")
    print(figures(results))
    missed = list(results.missed())
    for line in missed:
        print(f"bar missed: {line}", file=sys.stderr)
    sys.exit(1 if missed else 0)


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit("usage: page.py FOLDER-OF-REPORTS PAGE.md")
    main(*sys.argv[1:])

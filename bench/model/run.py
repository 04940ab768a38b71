"""Whole models in one run: butterfly (dense and by a pattern) beside transformers on torch.

Needs `butterfly` built with --release and, for the second half, torch and transformers; with
flash-linear-attention installed, transformers uses its kernels for linear attention. Weights are
random, of the shapes of a config.json; bf16, one sequence; logits of the last token alone.

    python bench/model/run.py CONFIG [--tokens 8192,32768] [--decode 128] [--chunk 8192]
        [--transformers-tokens 8192,32768]

Writes bench/results/model_NAME_DEVICE.{json,md}.
"""
import argparse, gc, json, os, statistics, subprocess, sys, time

ROOT = os.path.join(os.path.dirname(os.path.abspath(__file__)), "../..")
PATTERN = "block 128 causal & (local(1) | partner(causal_shift) | sink(1))"


def butterfly(options):
    program = os.path.join(ROOT, os.environ.get("CARGO_TARGET_DIR", "target"), "release/butterfly")
    command = [program, "bench", "model", "--json", "--random-weights", options.config,
               "--pattern", PATTERN, "--device", "cuda", "--profile",
               "--prompt-tokens", options.tokens, "--decode", str(options.decode),
               "--chunk", str(options.chunk)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(command)}: {done.stdout}")
    return json.loads(done.stdout)


def peer(options):
    """The same shapes by transformers; None if it is not installed."""
    try:
        import torch, transformers
    except ImportError as error:
        print(f"no peer: {error}", file=sys.stderr)
        return None
    from transformers import AutoConfig, AutoModelForCausalLM
    with open(options.config) as file:
        kind = json.load(file)
    config = AutoConfig.for_model(**kind)
    config._attn_implementation = "sdpa"
    torch.manual_seed(0)
    with torch.device("cuda"):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).eval()
    try:
        import fla
        linear = f"flash-linear-attention {fla.__version__}"
    except ImportError:
        linear = "torch"
    rows = []
    for tokens in map(int, options.transformers_tokens.split(",")):
        ids = (torch.arange(tokens, device="cuda") * 2654435761 % config.vocab_size)[None]

        def prefill():
            return model(ids, use_cache=True, logits_to_keep=1)

        row = {"prompt_tokens": tokens}
        try:
            with torch.inference_mode():
                gc.collect()
                torch.cuda.empty_cache()
                prefill()
                torch.cuda.reset_peak_memory_stats()
                torch.cuda.synchronize()
                started = time.perf_counter()
                out = prefill()
                torch.cuda.synchronize()
                row["prefill_seconds"] = time.perf_counter() - started
                row["prefill_tokens_per_second"] = tokens / row["prefill_seconds"]
                times = []
                for _ in range(min(options.decode, 32)):
                    started = time.perf_counter()
                    token = out.logits[:, -1:].argmax(-1)
                    out = model(token, past_key_values=out.past_key_values, use_cache=True)
                    torch.cuda.synchronize()
                    times.append(time.perf_counter() - started)
                row["decode_milliseconds"] = 1e3 * statistics.median(times[2:])
                row["memory_bytes"] = torch.cuda.max_memory_allocated()
                del out
        except torch.OutOfMemoryError:
            row["out_of_memory"] = True
        rows.append(row)
        print(row, file=sys.stderr)
    return {"torch": torch.__version__, "transformers": transformers.__version__,
            "linear_attention": linear, "rows": rows}


def table(report, other, options):
    name = os.path.splitext(os.path.basename(options.config))[0]
    number = lambda x, form: "" if x is None else format(x, form)
    lines = [f"# {name} shapes on {report['device_name']}", "",
             f"`python bench/model/run.py {os.path.basename(options.config)}`: random weights, bf16, batch 1, "
             f"prompts in chunks of {options.chunk}, {options.decode} tokens generated; pattern `{PATTERN}`. "
             "Memory: what the device has reserved (butterfly), the most allocated (torch)."]
    if other:
        lines[-1] += (f" transformers {other['transformers']} on torch {other['torch']}, SDPA, linear attention by "
                      f"{other['linear_attention']}, the whole prompt at once, in the same run.")
    lines += ["", "| | tokens | prefill, s | tokens/s | first token, s | decode, ms | memory, GB |",
              "|---|---|---|---|---|---|---|"]
    for row in report["rows"]:
        lines.append(f"| {row['attention']} | {row['prompt_tokens']} | {row['prefill_seconds']:.3f} | "
                     f"{row['prefill_tokens_per_second']:.0f} | {row['first_token_seconds']:.3f} | "
                     f"{number(row['decode_milliseconds'], '.2f')} | {row['memory_bytes'] / 1e9:.1f} |")
    for row in (other or {"rows": []})["rows"]:
        if row.get("out_of_memory"):
            lines.append(f"| transformers | {row['prompt_tokens']} | out of memory | | | | |")
        else:
            lines.append(f"| transformers | {row['prompt_tokens']} | {row['prefill_seconds']:.3f} | "
                         f"{row['prefill_tokens_per_second']:.0f} | | {row['decode_milliseconds']:.2f} | "
                         f"{row['memory_bytes'] / 1e9:.1f} |")
    lines += ["", f"Weights take {report['weights_bytes'] / 1e9:.2f} GB. Where the time of prefill goes, in % of a run "
              "with a wait after each part:", ""]
    parts = sorted({part for row in report["rows"] for part in row["profile"]})
    lines += ["| | tokens | " + " | ".join(parts) + " |", "|---|---|" + "---|" * len(parts)]
    for row in report["rows"]:
        total = sum(row["profile"].values())
        shares = " | ".join(f"{100 * row['profile'].get(part, 0) / total:.1f}" for part in parts)
        lines.append(f"| {row['attention']} | {row['prompt_tokens']} | {shares} |")
    return "\n".join(lines) + "\n"


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("config")
    parser.add_argument("--tokens", default="8192,32768,65536,131072,262144")
    parser.add_argument("--decode", type=int, default=128)
    parser.add_argument("--chunk", type=int, default=8192)
    parser.add_argument("--transformers-tokens", default="8192,32768,131072")
    options = parser.parse_args()
    report = butterfly(options)
    other = peer(options)
    name = os.path.splitext(os.path.basename(options.config))[0]
    device = "".join(c if c.isalnum() else "_" for c in report["device_name"].lower())
    path = os.path.join(ROOT, "bench/results", f"model_{name}_{device}")
    with open(path + ".json", "w") as file:
        json.dump({"butterfly": report, "transformers": other}, file, indent=1)
    text = table(report, other, options)
    with open(path + ".md", "w") as file:
        file.write(text)
    print(text)


main()

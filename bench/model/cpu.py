"""A packed model on the CPU: butterfly beside llama.cpp, from the same GGUF file in the same run.

Needs `butterfly` built with --release, and llama.cpp's Python package, which pip compiles for this CPU:

    pip install llama-cpp-python==0.3.36
    python bench/model/cpu.py FILE.gguf [--prompt 512] [--decode 64] [--rounds 5] [--threads 2]

Each round runs one after the other: a prompt in one piece, then tokens one by one. llama.cpp keeps keys and
values in f16 and computes with activations of 8 bits; butterfly computes with the unpacked weights and
activations in f32, and keeps keys and values in f32 or, with --dtype, in 16 bits.

Writes bench/results/cpu_NAME.{json,md}.
"""
import argparse, json, os, platform, statistics, subprocess, sys, time

ROOT = os.path.join(os.path.dirname(os.path.abspath(__file__)), "../..")


def butterfly(options):
    program = os.path.join(ROOT, os.environ.get("CARGO_TARGET_DIR", "target"), "release/butterfly")
    command = [program, "bench", "model", "--json", "--model", options.model, "--device", "cpu",
               "--prompt-tokens", str(options.prompt), "--decode", str(options.decode),
               "--dtype", options.dtype]
    environment = dict(os.environ, RAYON_NUM_THREADS=str(options.threads))
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, env=environment)
    if done.returncode:
        sys.exit(f"{' '.join(command)}: {done.stdout}")
    row = json.loads(done.stdout)["rows"][0]
    return {"prompt": row["prefill_tokens_per_second"], "decode": row["decode_tokens_per_second"]}


class Llama:
    def __init__(self, options):
        import llama_cpp
        self.version = llama_cpp.__version__
        self.options = options
        self.model = llama_cpp.Llama(
            options.model, n_ctx=options.prompt + options.decode + 8, n_batch=options.prompt,
            n_ubatch=options.prompt, n_threads=options.threads, n_threads_batch=options.threads,
            verbose=False)

    def run(self):
        options, model = self.options, self.model
        tokens = [7 + i * i % 1000 for i in range(options.prompt)]
        model.reset()
        start = time.perf_counter()
        model.eval(tokens)
        middle = time.perf_counter()
        for i in range(options.decode):
            model.eval([11 + i])
        end = time.perf_counter()
        return {"prompt": options.prompt / (middle - start), "decode": options.decode / (end - middle)}


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("--prompt", type=int, default=512)
    parser.add_argument("--decode", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--dtype", default="f32")
    options = parser.parse_args()
    llama = Llama(options)
    llama.run()
    rounds = [{"butterfly": butterfly(options), "llama.cpp": llama.run()} for _ in range(options.rounds)]
    table = {}
    for part in ["prompt", "decode"]:
        medians = {who: statistics.median(one[who][part] for one in rounds) for who in rounds[0]}
        table[part] = dict(medians, ratio=medians["butterfly"] / medians["llama.cpp"])
    name = os.path.splitext(os.path.basename(options.model))[0].lower()
    cpu = next((line.split(":")[1].strip() for line in open("/proc/cpuinfo") if "model name" in line),
               platform.processor())
    report = {"model": name, "cpu": cpu, "threads": options.threads, "dtype": options.dtype,
              "llama_cpp_python": llama.version, "prompt": options.prompt, "rounds": rounds, "medians": table}
    to = os.path.join(ROOT, "bench/results", f"cpu_{name}")
    with open(to + ".json", "w") as file:
        json.dump(report, file, indent=1)
    lines = [f"# {name} on {cpu}, {options.threads} threads", "",
             f"Tokens a second, medians of {options.rounds} rounds; prompt of {options.prompt} tokens; "
             f"butterfly in {options.dtype}, llama-cpp-python {llama.version}.", "",
             "| | butterfly | llama.cpp | ratio |", "|---|---|---|---|"]
    lines += [f"| {part} | {row['butterfly']:.1f} | {row['llama.cpp']:.1f} | {row['ratio']:.2f} |"
              for part, row in table.items()]
    text = "\n".join(lines) + "\n"
    with open(to + ".md", "w") as file:
        file.write(text)
    print(text)


main()

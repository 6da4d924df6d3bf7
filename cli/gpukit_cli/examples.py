"""What the help of each command ends with: a line or two to copy."""

EXAMPLES = {
    "create": (
        "gpukit create llama3.2:1b -f Modelfile -q Q4_K_M",
        "gpukit create llama3.2:1b -q Q4_K_M --dry-run",
        "gpukit create llama3.2:1b -q Q3_K_S --calibrate calibration.txt",
    ),
    "run": (
        "gpukit run llama3.2:1b",
        'gpukit run llama3.2:1b "Why is the sky blue?"',
        'gpukit run llama.gguf --system "Answer in one sentence." < question.txt',
        'gpukit run llama3.2:1b --adapter my-lora:0.8 "Why is the sky blue?"',
    ),
    "list": ("gpukit list", "gpukit list llama --json"),
    "show": ("gpukit show llama3.2:1b", "gpukit show llama3.2:1b --modelfile > Modelfile"),
    "cp": ("gpukit cp llama3.2:1b mine",),
    "pull": (
        "gpukit pull llama3.2:1b",
        "gpukit pull localhost:5000/me/llama:q4 --insecure",
    ),
    "push": (
        "gpukit push me/llama:q4",
        "gpukit push llama:q4 localhost:5000/me/llama:q4 --insecure",
        "gpukit push llama-q4.gguf hf.co/me/llama-gguf",
    ),
    "key": ("gpukit key show",),
    "rm": ("gpukit rm mine llama3.2:1b",),
    "gc": ("gpukit gc --dry-run", "gpukit gc"),
    "convert": (
        "gpukit convert Llama-3.2-1B-Instruct llama.gguf --type Q4_K_M",
        "gpukit convert llama.gguf llama.safetensors --type F16",
    ),
    "quantize": (
        "gpukit quantize llama-f16.gguf llama.gguf Q4_K_M",
        "gpukit quantize llama3.2:1b small.gguf Q3_K_M --imatrix imatrix.gguf --dry-run",
        'gpukit quantize llama-f16.gguf --types Q4_K_M,Q5_K_M,IQ4_XS --out "llama-{type}.gguf"',
    ),
    "merge": (
        "gpukit merge Llama-3.2-1B-Instruct merged --adapter my-lora",
        "gpukit merge Llama-3.2-1B-Instruct merged.gguf --adapter my-lora:0.8 --type Q4_K_M",
    ),
    "adapter": (
        "gpukit adapter my-lora my-lora.gguf --base Llama-3.2-1B-Instruct",
        "gpukit adapter my-lora --base Llama-3.2-1B-Instruct --extract my-tuned-llama --rank 16",
    ),
    "perplexity": (
        "gpukit perplexity llama-q4.gguf -f wiki.test.raw --against llama-f16.gguf",
        "gpukit perplexity Llama-3.2-1B-Instruct -f wiki.test.raw --types Q8_0,Q4_K_M,Q2_K",
    ),
    "imatrix": (
        "gpukit imatrix llama-f16.gguf -f calibration.txt -o imatrix.gguf",
        "gpukit imatrix --in-file imatrix.gguf --show-statistics",
    ),
    "inspect": ("gpukit inspect llama.gguf", "gpukit inspect Llama-3.2-1B-Instruct --tensors"),
    "batch": (
        "gpukit batch plan.yaml --dry-run",
        "gpukit batch plan.yaml --keep-going --summary summary.json",
        "gpukit batch status plan.yaml",
    ),
    "verify": (
        "gpukit verify llama-q4.gguf --from Llama-3.2-1B-Instruct",
        "gpukit verify merged.gguf --from Llama-3.2-1B-Instruct --adapter my-lora:0.8",
        "gpukit verify llama-q4.gguf",
        "gpukit verify llama3.2:1b",
        "gpukit verify --all",
    ),
    "bench": ("gpukit bench quantize --type Q4_K --type Q8_0", "gpukit bench dequantize"),
    "doctor": ("gpukit doctor",),
}


def epilog(name: str) -> str:
    """The end of the help of the command `name`, brackets kept from rich's markup."""
    lines = EXAMPLES[name]
    title = "Example:" if len(lines) == 1 else "Examples:"
    return "\n".join((title, *lines)).replace("[", "\\[")

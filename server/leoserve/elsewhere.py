"""Options of other servers that people bring along, and what takes their place here."""

from __future__ import annotations

ONE_DEVICE = "a model runs on one device; pipeline parallelism is not there yet"
NOT_NEEDED = "it is not needed here: leave it out"
NO_CODE = "code from a model's repository is never run: leave it out; all LeoLM models are served without"
QUANTIZED = "quantized checkpoints are not served yet; --kv-dtype stores keys and values in 8 bits"
TOOLS = "calls of functions need no parser or switch: leave it out"

# vLLM's first, then SGLang's, TGI's and llama.cpp's.
INSTEAD = {
    "-tp": "use --tensor-parallel-size",
    "--pipeline-parallel-size": ONE_DEVICE,
    "--data-parallel-size": "start a server for each device, behind one address",
    "--api-server-count": "use --api-workers",
    "--trust-remote-code": NO_CODE,
    "--quantization": QUANTIZED,
    "--kv-cache-dtype": "use --kv-dtype",
    "--tokenizer": "the tokenizer is the checkpoint's own",
    "--max-logprobs": "it is 20, as OpenAI has it",
    "--swap-space": NOT_NEEDED,
    "--disable-log-requests": "use --no-log-requests",
    "--enable-chunked-prefill": "prompts are always computed in chunks: leave it out",
    "--enable-auto-tool-choice": TOOLS,
    "--tool-call-parser": TOOLS,
    "--guided-decoding-backend": NOT_NEEDED,
    "--ssl-keyfile": "serve behind a proxy or an ingress that speaks TLS",
    "--uvicorn-log-level": "use --log-level",
    "--model-path": "the model is given without a flag: leoserve serve MODEL",
    "--mem-fraction-static": "use --gpu-memory-utilization",
    "--context-length": "use --max-model-len",
    "--max-running-requests": "use --max-num-seqs",
    "--model-id": "the model is given without a flag: leoserve serve MODEL",
    "--num-shard": "use --tensor-parallel-size",
    "--max-total-tokens": "use --max-model-len",
    "--max-concurrent-requests": "use --max-waiting-requests",
    "--ctx-size": "use --max-model-len",
    "--n-gpu-layers": "a model runs on one device as a whole: --device cuda or --device cpu",
    "--parallel": "use --max-num-seqs",
}

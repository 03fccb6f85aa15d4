"""A conversation on the platform beside transformers' own `generate`: `python -m bench.chat`.

Rival: `model.generate` with a streamer, in this process, the model loaded before. Beside it in turn the loop
of our chat worker in this same process (`loop`), and the whole way from a client through gateway, registry,
bus and agent to a worker process and back (`served`). The same prompt, the likeliest tokens, as many of
them, the same threads; of each the best of some rounds, for other work on the machine only adds. The last
line is JSON.
"""

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench.__main__ import real_model
from tests.support.platform import Platform, embedded, tiny_model
from tunesmith.api.registry.v1 import chat_pb2

TARGETS = {
    "chat_loop_first_token_ratio": "<= 1.3",
    "chat_loop_speed_ratio": ">= 0.95",
    "chat_served_first_token_ratio": "<= 1.3",
    "chat_served_speed_ratio": ">= 0.95",
}
QUESTION = "Tell me the story of a small town by the sea, its people and its lighthouse, in many words."
Figures = tuple[float, float]  # seconds to the first token, tokens a second after it


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokens", type=int, default=48, help="tokens of an answer")
    parser.add_argument("--rounds", type=int, default=5, help="answers of each kind")
    parser.add_argument("--threads", type=int, default=2, help="threads of torch")
    options = parser.parse_args()
    model = real_model() or tiny_model()
    # Equal threads for all, and equal rights: chat otherwise stands behind training.
    env = {"TUNESMITH_AGENT_CHAT_THREADS": str(options.threads), "TUNESMITH_AGENT_STANDBY": "false"}
    with tempfile.TemporaryDirectory() as folder, embedded(Path(folder), env) as platform:
        with platform.client() as client:
            client.models.import_base(model, "bench")
        served = _served(platform, options.tokens)
        served()  # the worker loads the model
        rivals = {**_local(model, options.tokens, options.threads), "served": served}
        found: dict[str, list[Figures]] = {name: [] for name in rivals}
        for number in range(options.rounds + 1):
            for name, answer in rivals.items():
                figures = answer()
                if number:  # the first only warms up
                    found[name].append(figures)
    _print(found)


def _print(found: dict[str, list[Figures]]) -> None:
    first = {name: min(seconds for seconds, _ in rounds) for name, rounds in found.items()}
    speed = {name: max(rate for _, rate in rounds) for name, rounds in found.items()}
    told: dict[str, float] = {}
    for name in found:
        told[f"chat_{name}_first_token_ms"] = round(first[name] * 1000, 1)
        told[f"chat_{name}_tokens_per_s"] = round(speed[name], 2)
    for name in ("loop", "served"):
        told[f"chat_{name}_first_token_ratio"] = round(first[name] / first["generate"], 3)
        told[f"chat_{name}_speed_ratio"] = round(speed[name] / speed["generate"], 3)
    for key, value in told.items():
        sys.stdout.write(f"{key:34} {value:>10}   {TARGETS.get(key, '')}\n")
    sys.stdout.write(json.dumps(told) + "\n")


def _served(platform: Platform, tokens: int) -> Callable[[], Figures]:
    client = platform.client()

    def answer() -> Figures:
        began, times = time.perf_counter(), []
        for response in client.chat.stream("bench", QUESTION, max_new_tokens=tokens):
            if response.delta:
                times.append(time.perf_counter())
            if response.state == chat_pb2.CHAT_STATE_DONE:
                count = response.usage.completion_tokens
        return times[0] - began, (count - 1) / (time.perf_counter() - times[0])

    return answer


def _local(model: Path, tokens: int, threads: int) -> dict[str, Callable[[], Figures]]:
    os.environ["HF_HUB_OFFLINE"] = "1"
    import torch
    from transformers import GenerationConfig
    from transformers.generation.streamers import BaseStreamer

    from tunesmith_trainer import adapters
    from tunesmith_trainer.generation import Answer, Parameters
    from tunesmith_trainer.serve import render

    torch.set_num_threads(threads)
    cpu = torch.device("cpu")
    swap = adapters.load(model, cpu, torch.float32)
    causal: Any = swap.causal
    messages = [{"role": "user", "content": QUESTION}]
    config = GenerationConfig(max_new_tokens=tokens, do_sample=False, pad_token_id=0)

    class Clock(BaseStreamer):
        def __init__(self) -> None:
            self.times: list[float] = []

        def put(self, value: Any) -> None:
            self.times.append(time.perf_counter())

        def end(self) -> None:
            self.times.append(time.perf_counter())

    def generate() -> Figures:
        clock, began = Clock(), time.perf_counter()
        prompt = render(swap.tokenizer, messages)
        inputs = swap.tokenizer(prompt, add_special_tokens=False, return_tensors="pt")
        with torch.inference_mode():
            output = causal.generate(**inputs, generation_config=config, streamer=clock)
        count = output.shape[1] - inputs["input_ids"].shape[1]
        # The first that a streamer hears is the prompt.
        return clock.times[1] - began, (count - 1) / (clock.times[-1] - clock.times[1])

    def loop() -> Figures:
        began = time.perf_counter()
        prompt = render(swap.tokenizer, messages)
        answer = Answer(swap.causal, swap.tokenizer, prompt, Parameters(max_new_tokens=tokens), cpu)
        answer.step()
        first = time.perf_counter()
        while not answer.finish:
            answer.step()
        return first - began, (answer.completion_tokens - 1) / (time.perf_counter() - first)

    return {"generate": generate, "loop": loop}


if __name__ == "__main__":
    main()

"""A chat with one deployment, as `helm test` runs it: waits until it is ready, asks once, prints the answer."""

import json
import os
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

BASE = os.environ["BASE_URL"]
KEY_FILE = os.environ.get("KEY_FILE")
DEADLINE = time.monotonic() + float(os.environ["WAIT_SECONDS"])


def ask(path, body=None):
    """The JSON that the server answers with. Raises OSError, of which HTTPError is one."""
    headers = {"Content-Type": "application/json"}
    if KEY_FILE:
        lines = [line.split() for line in Path(KEY_FILE).read_text(encoding="utf-8").splitlines()]
        headers["Authorization"] = f"Bearer {next(words[0] for words in lines if words and words[0][0] != '#')}"
    data = None if body is None else json.dumps(body).encode()
    with urllib.request.urlopen(urllib.request.Request(BASE + path, data, headers), timeout=600) as answer:
        return json.load(answer)


while True:
    try:
        ask("/ready")
        break
    except OSError as error:  # no pod is ready, so the Service leads nowhere
        if time.monotonic() > DEADLINE:
            sys.exit(f"{BASE} is not ready: {error}")
        time.sleep(2)
try:
    model = ask("/v1/models")["data"][0]["id"]
    message = {"role": "user", "content": os.environ["PROMPT"]}
    answer = ask("/v1/chat/completions", {"model": model, "messages": [message], "max_tokens": 64})
except urllib.error.HTTPError as error:
    sys.exit(f"{BASE} answered {error.code}: {error.read().decode()}")
print(f"{model}: {answer['choices'][0]['message']['content']}")

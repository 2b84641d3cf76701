// The `openai` package of npm against a running server, whose addresses come by the environment:
// LEOSERVE_URL serves the demo model; LEOSERVE_NARROW_URL answers one request at a time and lets two wait;
// LEOSERVE_KEYED_URL wants the key "geheim".

import assert from 'node:assert/strict';
import { describe, test } from 'node:test';

import OpenAI from 'openai';
import { zodFunction, zodResponseFormat, zodTextFormat } from 'openai/helpers/zod';
import { z } from 'zod';

const model = 'leoserve-demo';
const question = 'Was ist die Hauptstadt von Frankreich?';
const messages = [{ role: 'user', content: question }];

function clientOf(url, options = {}) {
  return new OpenAI({ baseURL: `${url}/v1`, apiKey: 'none', maxRetries: 0, ...options });
}

const client = clientOf(process.env.LEOSERVE_URL);

const City = z.object({
  name: z.string().max(20),
  river: z.enum(['Rhein', 'Spree', 'Düssel']),
  inhabitants: z.number().int().min(0).max(5_000_000),
  twin: z.string().max(10).nullable(),
});

async function gauge(url, name) {
  const text = await (await fetch(`${url}/metrics`)).text();
  return Number(text.split('\n').find((line) => line.startsWith(name)).split(' ').at(-1));
}

async function until(condition) {
  while (!(await condition())) await new Promise((resolve) => setTimeout(resolve, 20));
}

describe('chats', () => {
  test('a question is answered, and a stream brings the same', async () => {
    const whole = await client.chat.completions.create({ model, messages, temperature: 0 });
    assert.match(whole.choices[0].message.content, /Paris/);
    assert.equal(whole.choices[0].finish_reason, 'stop');
    assert.equal(whole.usage.total_tokens, whole.usage.prompt_tokens + whole.usage.completion_tokens);

    const stream = await client.chat.completions.create({
      model,
      messages,
      temperature: 0,
      stream: true,
      stream_options: { include_usage: true },
    });
    let text = '';
    let usage = null;
    const finishes = [];
    for await (const chunk of stream) {
      text += chunk.choices[0]?.delta.content ?? '';
      if (chunk.choices[0]?.finish_reason) finishes.push(chunk.choices[0].finish_reason);
      usage = chunk.usage ?? usage;
    }
    assert.equal(text, whole.choices[0].message.content);
    assert.deepEqual(finishes, ['stop']);
    assert.equal(usage.completion_tokens, whole.usage.completion_tokens);
  });

  test('the accumulator of a stream gives the whole answer with its log-probabilities', async () => {
    const runner = client.chat.completions.stream({ model, messages, temperature: 0, logprobs: true, top_logprobs: 2 });
    let heard = '';
    runner.on('content', (delta) => (heard += delta));
    const answer = await runner.finalChatCompletion();
    assert.equal(heard, answer.choices[0].message.content);
    const entries = answer.choices[0].logprobs.content;
    assert.equal(entries.map((entry) => entry.token).join(''), heard);
    assert.ok(entries.every((entry) => entry.top_logprobs.length === 2));
  });

  test('several choices of a stream stay apart', async () => {
    const body = { model, messages, n: 3, seed: 7, temperature: 1.5, max_tokens: 20 };
    const whole = await client.chat.completions.create(body);
    const texts = ['', '', ''];
    for await (const chunk of await client.chat.completions.create({ ...body, stream: true })) {
      for (const choice of chunk.choices) texts[choice.index] += choice.delta.content ?? '';
    }
    assert.deepEqual(texts, whole.choices.map((choice) => choice.message.content));
  });

  test('a stream can be read as a web stream', async () => {
    const stream = await client.chat.completions.create({ model, messages, temperature: 0, stream: true });
    const lines = (await new Response(stream.toReadableStream()).text()).trimEnd().split('\n');
    const text = lines.map((line) => JSON.parse(line).choices[0].delta.content ?? '').join('');
    assert.match(text, /Paris/);
  });

  test('an answer of a zod schema is parsed', async () => {
    const form = { model, messages, temperature: 2, response_format: zodResponseFormat(City, 'city') };
    for (const seed of [1, 2, 3]) {
      const answer = await client.chat.completions.parse({ ...form, seed });
      City.parse(answer.choices[0].message.parsed);
      const streamed = await client.chat.completions.stream({ ...form, seed }).finalChatCompletion();
      assert.deepEqual(streamed.choices[0].message.parsed, answer.choices[0].message.parsed);
    }
  });

  test('forced calls have the arguments of their schema, streamed and not', async () => {
    const tools = [zodFunction({ name: 'weather', parameters: z.object({ city: z.string().max(12), days: z.number().int() }) })];
    const body = { model, messages, tools, tool_choice: 'required', parallel_tool_calls: false, temperature: 1.5, seed: 4 };
    const whole = await client.chat.completions.parse(body);
    const call = whole.choices[0].message.tool_calls[0];
    assert.equal(typeof call.function.parsed_arguments.city, 'string');
    assert.ok(Number.isInteger(call.function.parsed_arguments.days));
    assert.equal(whole.choices[0].finish_reason, 'tool_calls');
    const streamed = await client.chat.completions.stream(body).finalChatCompletion();
    assert.equal(streamed.choices[0].message.tool_calls[0].function.arguments, call.function.arguments);
  });

  test('the tool runner calls a function and sends back what it said', async () => {
    const asked = [];
    const runner = client.chat.completions.runTools(
      {
        model,
        messages,
        temperature: 0,
        tool_choice: 'required',
        tools: [
          zodFunction({
            name: 'weather',
            parameters: z.object({ city: z.enum(['Köln', 'Berlin']) }),
            function: ({ city }) => {
              asked.push(city);
              return 'Sonne';
            },
          }),
        ],
      },
      { maxChatCompletions: 2 },
    );
    await runner.done();
    assert.ok(asked.length >= 2);
    assert.ok(asked.every((city) => ['Köln', 'Berlin'].includes(city)));
    assert.ok(runner.messages.some((message) => message.role === 'tool' && message.content === 'Sonne'));
  });
});

describe('completions, models and raw answers', () => {
  test('completions, with prompts of texts and of tokens, whole and streamed', async () => {
    for (const prompt of [['Guten', 'Es war'], [[5, 6, 7], [8]]]) {
      const body = { model, prompt, max_tokens: 8, temperature: 0, logprobs: 1 };
      const whole = await client.completions.create(body);
      const texts = ['', ''];
      for await (const chunk of await client.completions.create({ ...body, stream: true })) {
        for (const choice of chunk.choices) texts[choice.index] += choice.text;
      }
      assert.deepEqual(texts, whole.choices.map((choice) => choice.text));
    }
  });

  test('models are listed, one is retrieved, and an unknown one is not found', async () => {
    const listed = [];
    for await (const each of client.models.list()) listed.push(each.id);
    assert.deepEqual(listed, [model]);
    assert.equal((await client.models.retrieve(model)).id, model);
    await assert.rejects(client.models.retrieve('gpt-4'), OpenAI.NotFoundError);
  });

  test('the raw response tells its request id', async () => {
    const { data, response, request_id: id } = await client.chat.completions
      .create({ model, messages, max_tokens: 1 }, { headers: { 'x-request-id': 'von-mir' } })
      .withResponse();
    assert.equal(id, 'von-mir');
    assert.equal(response.headers.get('content-type'), 'application/json');
    assert.equal(data._request_id, 'von-mir');
  });
});

describe('responses', () => {
  test('created, streamed and parsed', async () => {
    const body = { model, input: question, temperature: 0 };
    const whole = await client.responses.create(body);
    assert.match(whole.output_text, /Paris/);
    const stream = client.responses.stream(body);
    let text = '';
    for await (const event of stream) if (event.type === 'response.output_text.delta') text += event.delta;
    assert.equal(text, whole.output_text);
    assert.equal((await stream.finalResponse()).output_text, whole.output_text);
    const parsed = await client.responses.parse({ ...body, temperature: 2, text: { format: zodTextFormat(City, 'city') } });
    City.parse(parsed.output_parsed);
  });
});

describe('what goes wrong', () => {
  test('errors are of the class, the code and the field', async () => {
    const expectations = [
      [{ model: 'gpt-4', messages }, OpenAI.NotFoundError, 404, 'model_not_found', 'model'],
      [{ model, messages: [] }, OpenAI.BadRequestError, 400, undefined, 'messages'],
      [{ model, messages, temperature: 3 }, OpenAI.BadRequestError, 400, undefined, 'temperature'],
      [{ model, messages, frequenz: 1 }, OpenAI.BadRequestError, 400, undefined, 'frequenz'],
      [{ model, messages, max_tokens: 10 ** 6 }, OpenAI.BadRequestError, 400, 'context_length_exceeded', undefined],
      [{ model, messages, max_tokens: 10 ** 6, stream: true }, OpenAI.BadRequestError, 400, 'context_length_exceeded', undefined],
    ];
    for (const [body, kind, status, code, param] of expectations) {
      await assert.rejects(client.chat.completions.create(body), (error) => {
        assert.ok(error instanceof kind, `${error}`);
        assert.equal(error.status, status);
        assert.equal(error.type, 'invalid_request_error');
        if (code) assert.equal(error.code, code);
        if (param) assert.equal(error.param, param);
        assert.ok(error.requestID);
        return true;
      });
    }
  });

  test('a wrong key is refused and the right one is not', async () => {
    const url = process.env.LEOSERVE_KEYED_URL;
    await assert.rejects(clientOf(url).models.list(), OpenAI.AuthenticationError);
    assert.equal((await clientOf(url, { apiKey: 'geheim' }).models.list()).data[0].id, model);
  });

  test('overload is retried by the package, by our headers, until all are answered', async () => {
    const url = process.env.LEOSERVE_NARROW_URL;
    const body = { model, prompt: 'Es war einmal', max_tokens: 40, ignore_eos: true };
    // Long enough for all twelve to come while the first three are not done.
    const long = { ...body, max_tokens: 400 };
    const refused = await Promise.allSettled(Array.from({ length: 12 }, () => clientOf(url).completions.create(long)));
    const errors = refused.filter((each) => each.status === 'rejected').map((each) => each.reason);
    assert.ok(errors.length > 0);
    for (const error of errors) {
      assert.ok(error instanceof OpenAI.RateLimitError);
      assert.ok(Number(error.headers.get('retry-after-ms')) > 0);
    }
    const patient = clientOf(url, { maxRetries: 20 });
    const answers = await Promise.all(Array.from({ length: 12 }, () => patient.completions.create(body)));
    assert.ok(answers.every((answer) => answer.usage.completion_tokens === 40));
  });

  test('an aborted stream and an aborted request free what they held', async () => {
    const url = process.env.LEOSERVE_URL;
    // Seconds of work: whoever goes away, goes before its end.
    const long = { model, prompt: 'Es war einmal', max_tokens: 1500, n: 16, ignore_eos: true };
    const stream = await client.completions.create({ ...long, stream: true });
    for await (const chunk of stream) {
      assert.ok(chunk.choices);
      break; // which aborts
    }
    await until(async () => (await gauge(url, 'vllm:num_requests_running')) === 0);
    const aborter = new AbortController();
    const asked = assert.rejects(client.completions.create(long, { signal: aborter.signal }), OpenAI.APIUserAbortError);
    await until(async () => (await gauge(url, 'vllm:num_requests_running')) > 0);
    aborter.abort();
    await asked;
    await until(async () => (await gauge(url, 'vllm:num_requests_running')) === 0);
    assert.equal(await gauge(url, 'vllm:num_requests_waiting'), 0);
    assert.equal(await gauge(url, 'vllm:kv_cache_usage_perc'), 0);
  });

  test('a client that does not wait gets its own timeout', async () => {
    const hurried = clientOf(process.env.LEOSERVE_URL, { timeout: 50 });
    const body = { model, prompt: 'Es war einmal', max_tokens: 1500, ignore_eos: true };
    await assert.rejects(hurried.completions.create(body), OpenAI.APIConnectionTimeoutError);
  });
});

"""The load engine behind `gateway bench` and the benchmarks: many streams from one process, and honest percentiles.

`engine` starts requests when they are due, `connection` speaks HTTP/1.1, `events` counts server-sent events,
`histogram` keeps what was measured, `result` is what comes out. Nothing here knows the gateway: any server that
answers OpenAI's or Anthropic's requests can be measured.
"""

-- What callers got of an answer in the background before it is charged: all there is to charge by where its provider
-- reports nothing in the end, as of one that was cancelled.

alter table objects
    add column delivered_input_tokens bigint not null default 0 check (delivered_input_tokens >= 0),
    add column delivered_output_tokens bigint not null default 0 check (delivered_output_tokens >= 0);

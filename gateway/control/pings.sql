-- Statements of the counter of pings.

-- count_pings: so many more
insert into counters (name, value) values ('pings', $1)
on conflict (name) do update set value = counters.value + excluded.value, updated_at = now()
returning value;

-- read_pings: how many there were
select value, created_at, updated_at from counters where name = 'pings';

-- Statements about the prices that administrators set.

-- lock_price: of a model, until it is changed
select prices, updated_at, updated_by from model_prices where model = $1 for no key update;

-- set_price: what is set of a model
insert into model_prices (model, prices, updated_by) values ($1, $2, $3)
on conflict (model) do update set prices = excluded.prices, updated_by = excluded.updated_by, updated_at = now();

-- drop_price: nothing is set of it any more
delete from model_prices where model = $1;

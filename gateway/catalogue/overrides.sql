-- Prices that administrators have set.

-- read_overrides: all of them
select model, prices from model_prices order by model;

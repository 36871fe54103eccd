-- The price that work in the background was ordered at, which holds although another one is set before it is done.

alter table objects add column terms jsonb check (jsonb_typeof(terms) = 'object');

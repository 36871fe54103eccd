-- Statements about credit that is given and taken.

-- now: when this transaction began, and with it every entry it makes
select now();

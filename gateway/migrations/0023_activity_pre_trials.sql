-- Trials, and what they led to: few among all that was used, so that what became of them is read without the rest.

create index entries_trials on entries (account_id, seq) where type in ('trial', 'purchase');

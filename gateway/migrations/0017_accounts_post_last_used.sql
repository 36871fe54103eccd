-- When a key was last used stands in `usage_totals`, kept by the settler; nobody ever wrote it here.

alter table keys drop column last_used_at;

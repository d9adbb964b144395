-- The callers that wait for a queued run. A caller that stops withdraws only its own wait.
-- They are in the row, whose lock orders requests, withdrawals and closes.

-- Each process, and the Unix time of its deadline. wait_until is the latest deadline.
-- A run that always runs has no entry.
alter table marketing_data_service.run
  add column askers jsonb not null default '{}' check (jsonb_typeof(askers) = 'object');

-- The present callers are not recorded.
update marketing_data_service.run
  set askers = jsonb_build_object('before version 4', extract(epoch from wait_until))
  where state = 'queued' and wait_until < 'infinity';

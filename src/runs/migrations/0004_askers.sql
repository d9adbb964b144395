-- Who waits for a queued run: one who stops takes back that wish and no other one's.
-- In the row itself, so that asking, stopping and closing follow one another by its lock.

-- The process that asks, and the Unix time until which it waits for the run to begin;
-- wait_until is the latest of them. Nobody asks for a run that is to run in any case.
alter table marketing_data_service.run
  add column askers jsonb not null default '{}' check (jsonb_typeof(askers) = 'object');

-- Those who wait now did not leave their names.
update marketing_data_service.run
  set askers = jsonb_build_object('before version 4', extract(epoch from wait_until))
  where state = 'queued' and wait_until < 'infinity';

-- Alerts to Slack and Teams.

alter table marketing_data_service.publisher
  drop constraint publisher_name_check,
  add constraint publisher_name_check check (name in ('file', 'webhook', 'slack', 'teams')),
  -- Names of the tables whose failure was reported there, and that have not loaded since.
  add column if not exists failing_tables json not null default '[]' check (json_typeof(failing_tables) = 'array');

alter table marketing_data_service.delivery
  drop constraint delivery_publisher_check,
  add constraint delivery_publisher_check check (publisher in ('file', 'webhook', 'slack', 'teams'));

-- The four tables of messaging that every service's database holds: outbox, its cursor, inbox, dead letters.
-- The service's role is granted what it needs at the end; it owns nothing, so that it can alter nothing.

-- Insert-only. The relay reads it in the order (era, xid, seq) behind the snapshot horizon, so that a row whose
-- transaction commits late is never skipped. The era is raised by hand after a restore, because transaction ids then
-- start again: alter table outbox alter column era set default <n + 1>.
create table outbox (
    era          integer     not null default 1,
    xid          xid8        not null default pg_current_xact_id(),
    seq          bigint      not null generated always as identity,
    created_at   timestamptz not null default clock_timestamp(),
    event_id     uuid        not null,
    message_type text        not null,
    partition    smallint    not null,
    key          text        not null,
    causation_id uuid,
    traceparent  text        not null,
    payload      bytea       not null,
    -- A row that the broker cannot take would block the relay: refuse it where it is written.
    constraint outbox_payload_size check (octet_length(payload) <= 524288)
) partition by range (created_at);
create index outbox_order on outbox (era, xid, seq);

-- How far the relay is, and which process leads it. Every move of the cursor proves the epoch.
create table outbox_cursor (
    only_row boolean     primary key default true check (only_row),
    era      integer     not null default 0,
    xid      xid8        not null default '0',
    seq      bigint      not null default 0,
    holder   text        not null default '',
    epoch    bigint      not null default 0,
    until    timestamptz not null default '-infinity'
);
insert into outbox_cursor default values;

-- Which events a consumer has applied. Partitioned by the event id's time (UUIDv7) without a default partition: an
-- event older than the oldest partition is parked, never applied again.
create table inbox (
    event_id   uuid        not null,
    consumer   text        not null,
    applied_at timestamptz not null default clock_timestamp(),
    primary key (event_id, consumer)
) partition by range (event_id);

create table dead_letters (
    dead_letter_id uuid        primary key,
    consumer       text        not null,
    -- evt_… of the message, or stream:incarnation:sequence where none could be read.
    source         text        not null,
    -- -1: the message as a whole.
    fact_index     integer     not null,
    event_id       uuid,
    message_type   text        not null,
    subject        text        not null,
    reason         text        not null,
    detail         text        not null,
    headers        jsonb       not null,
    payload        bytea       not null,
    delivery_count bigint      not null,
    state          text        not null default 'OPEN' check (state in ('OPEN', 'REPLAYED')),
    created_at     timestamptz not null default clock_timestamp(),
    replayed_at    timestamptz,
    unique (consumer, source, fact_index)
);
create index dead_letters_open on dead_letters (created_at) where state = 'OPEN';

-- The smallest UUIDv7 of a time.
create function florin_uuid_at(at timestamptz) returns uuid language sql immutable as $$
    select (lpad(to_hex((extract(epoch from at) * 1000)::bigint), 12, '0') || repeat('0', 20))::uuid
$$;

-- Makes the partitions from two days ago to two days ahead, eight hours each. Adding one takes a lock for a moment
-- only; lock_timeout keeps it from queueing in front of everybody else.
create function florin_ensure_partitions() returns void language plpgsql as $$
declare
    start  timestamptz := date_trunc('day', now() at time zone 'utc') at time zone 'utc' - interval '2 days';
    finish timestamptz;
    suffix text;
begin
    perform set_config('lock_timeout', '200ms', true);
    -- After a long stop there must be no hole between the old partitions and the new ones.
    start := least(start, coalesce((
        select max(to_timestamp(right(c.relname, 10), 'YYYYMMDDHH24')::timestamp at time zone 'utc') + interval '8 hours'
        from pg_inherits i join pg_class c on c.oid = i.inhrelid where i.inhparent = 'inbox'::regclass), start));
    while start < now() + interval '2 days' loop
        finish := start + interval '8 hours';
        suffix := to_char(start at time zone 'utc', 'YYYYMMDDHH24');
        if to_regclass('outbox_' || suffix) is null then
            execute format('create table %I (like outbox including all excluding identity)', 'outbox_' || suffix);
            execute format('alter table outbox attach partition %I for values from (%L) to (%L)',
                           'outbox_' || suffix, start, finish);
        end if;
        if to_regclass('inbox_' || suffix) is null then
            execute format('create table %I (like inbox including all)', 'inbox_' || suffix);
            execute format('alter table inbox attach partition %I for values from (%L) to (%L)',
                           'inbox_' || suffix, florin_uuid_at(start), florin_uuid_at(finish));
        end if;
        start := finish;
    end loop;
end
$$;

-- The oldest and the newest time that the inbox has partitions for.
create function florin_inbox_range(out oldest uuid, out newest uuid) language sql stable as $$
    select min(florin_uuid_at(to_timestamp(right(c.relname, 10), 'YYYYMMDDHH24')::timestamp at time zone 'utc')::text)::uuid,
           max(florin_uuid_at(to_timestamp(right(c.relname, 10), 'YYYYMMDDHH24')::timestamp at time zone 'utc'
                              + interval '8 hours')::text)::uuid
    from pg_inherits i join pg_class c on c.oid = i.inhrelid
    where i.inhparent = 'inbox'::regclass
$$;

-- The service's role: named as the database, without the owner's rights.
do $$
declare app text := current_database() || '_app';
begin
    if exists (select from pg_roles where rolname = app) then
        execute format('grant usage on schema public to %I', app);
        execute format('grant select, insert on outbox, inbox to %I', app);
        execute format('grant select, update on outbox_cursor to %I', app);
        execute format('grant select, insert, update on dead_letters to %I', app);
        execute format('alter default privileges in schema public grant select on tables to %I', app);
    end if;
end
$$;

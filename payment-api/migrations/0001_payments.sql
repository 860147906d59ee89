-- Payments, their payment orders, idempotency keys and fee schedules.

create table payments (
    payment_id       uuid        primary key,
    merchant_id      text        not null,
    order_id         text        not null,
    buyer_id         text        not null,
    currency         text        not null,
    total            bigint      not null check (total > 0),
    payment_token    text        not null,
    psp_account      text        not null,
    description      text        not null,
    metadata         jsonb       not null,
    state            text        not null check (state in ('PENDING', 'PROCESSING', 'SUCCEEDED',
                                                           'PARTIALLY_SUCCEEDED', 'FAILED', 'CANCELED')),
    -- Payment orders that are not final; reaching 0 completes the payment.
    open_orders      integer     not null check (open_orders >= 0),
    succeeded_orders integer     not null default 0,
    canceled_orders  integer     not null default 0,
    order_count      integer     not null check (order_count between 1 and 100),
    traceparent      text        not null,
    created_at       timestamptz not null,
    updated_at       timestamptz not null,
    completed_at     timestamptz,
    version          bigint      not null default 1,
    check (succeeded_orders + canceled_orders + open_orders <= order_count)
);
-- UUIDv7: the order of ids is the order of time.
create index payments_newest on payments (merchant_id, payment_id desc);
create index payments_by_order on payments (merchant_id, order_id, payment_id desc);
create index payments_by_buyer on payments (merchant_id, buyer_id, payment_id desc);

create table payment_orders (
    payment_order_id     uuid        primary key,
    payment_id           uuid        not null references payments,
    line                 smallint    not null,
    merchant_id          text        not null,
    order_id             text        not null,
    buyer_id             text        not null,
    seller_id            text        not null,
    seller_reference     text        not null,
    charge_id            uuid        not null,
    currency             text        not null,
    amount               bigint      not null check (amount > 0),
    fee                  bigint      not null check (fee between 0 and amount),
    fee_schedule_id      text        not null,
    fee_schedule_version integer     not null,
    state                text        not null check (state in ('PENDING', 'PROCESSING', 'REQUIRES_ACTION', 'AUTHORIZED',
                                                               'SUCCEEDED', 'FAILED', 'CANCELED')),
    captured             bigint      not null default 0 check (captured between 0 and amount),
    failure_reason       text,
    failure_code         text,
    failure_message      text,
    attempt_count        integer     not null default 0,
    uncertain_since      timestamptz,
    psp                  text        not null default '',
    psp_account          text        not null default '',
    psp_reference        text        not null default '',
    -- Version of the charge that was applied last: older news are dropped.
    charge_version       bigint      not null default 0,
    -- What psp-worker plans; for watchers.
    next_psp_action_at   timestamptz,
    -- When payment-api asks psp-worker again; null when final (guarantees, rule 4).
    next_action_at       timestamptz,
    created_at           timestamptz not null,
    updated_at           timestamptz not null,
    version              bigint      not null default 1,
    check ((state = 'FAILED') = (failure_reason is not null)),
    check ((state in ('SUCCEEDED', 'FAILED', 'CANCELED')) = (next_action_at is null))
);
create index payment_orders_of on payment_orders (payment_id, line);
create index payment_orders_newest on payment_orders (merchant_id, payment_order_id desc);
create index payment_orders_by_seller on payment_orders (merchant_id, seller_id, payment_order_id desc);
create index payment_orders_overdue on payment_orders (next_action_at) where next_action_at is not null;
create index payment_orders_uncertain on payment_orders (merchant_id, payment_order_id desc)
    where uncertain_since is not null;

-- Kept for ever: a key that was used once never means anything else.
create table idempotency_keys (
    merchant_id         text        not null,
    idempotency_key     text        not null,
    payment_id          uuid        not null,
    fingerprint         bytea       not null,
    fingerprint_version smallint    not null,
    created_at          timestamptz not null default clock_timestamp(),
    primary key (merchant_id, idempotency_key)
);

-- Money that the PSP moved for an order that had failed: owed back to the buyer, decided by an operator.
create table unexpected_charges (
    charge_id        uuid        primary key,
    payment_order_id uuid        not null references payment_orders,
    merchant_id      text        not null,
    currency         text        not null,
    amount           bigint      not null check (amount > 0),
    psp_reference    text        not null,
    event_id         uuid        not null,
    recorded_at      timestamptz not null default clock_timestamp()
);

-- The platform's commission. The schedule of the seller wins over the merchant's default, which wins over the
-- platform's ('*'); of several, the latest that is effective. A change is a new version, never an update.
create table fee_schedules (
    schedule_id    text        not null,
    version        integer     not null,
    merchant_id    text        not null default '*',
    seller_id      text        not null default '*',
    currency       text        not null,
    basis_points   integer     not null check (basis_points between 0 and 10000),
    fixed          bigint      not null default 0 check (fixed >= 0),
    minimum        bigint      not null default 0 check (minimum >= 0),
    maximum        bigint      check (maximum >= minimum),
    effective_from timestamptz not null default '-infinity',
    primary key (schedule_id, version, currency)
);

-- A default in the demo's currencies; a currency without a schedule has no fee.
insert into fee_schedules (schedule_id, version, currency, basis_points, fixed, minimum, maximum) values
    ('standard', 1, 'EUR', 250, 10, 10, 50000),
    ('standard', 1, 'USD', 250, 10, 10, 50000),
    ('standard', 1, 'GBP', 250, 10, 10, 50000),
    ('standard', 1, 'CHF', 250, 10, 10, 50000),
    ('standard', 1, 'JPY', 250, 10, 10, 50000),
    ('standard', 1, 'KWD', 250, 50, 50, 50000);

do $$
declare app text := current_database() || '_app';
begin
    if exists (select from pg_roles where rolname = app) then
        execute format('grant select, insert, update on payments, payment_orders to %I', app);
        execute format('grant select, insert on idempotency_keys, unexpected_charges, fee_schedules to %I', app);
    end if;
end
$$;

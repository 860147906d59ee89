//! `florin.payment.v1.PaymentService`.

use std::pin::Pin;
use std::sync::Arc;

use florin::auth::Call;
use florin::batch::Batcher;
use florin::clock::Clock;
use florin::error::{Error, Reason, Violations};
use florin::id::{ChargeId, PaymentId, PaymentOrderId};
use florin::page::{self, Query};
use florin::proto::payment::v1 as proto;
use florin::proto::payment::v1::payment_service_server::PaymentService;
use florin::server::REPLAYED;
use florin::{telemetry, wire as platform};
use tokio_stream::Stream;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::metadata::MetadataValue;
use tonic::{Request, Response, Status};
use uuid::Uuid;

use crate::config::Psp;
use crate::error::{payment_not_found, payment_order_not_found};
use crate::fee::{self, Schedules};
use crate::payment::{Order, OrderState, Payment, PaymentState};
use crate::store::{Created, NewPayment, OrderFilter, PaymentFilter, Store};
use crate::watch::Watches;
use crate::{request, wire};

/// The service's parts.
#[derive(Debug, Clone)]
pub struct Payments {
    /// The database.
    pub store: Store,
    /// Gathers creations into batches.
    pub create: Batcher<NewPayment, Created>,
    /// Who waits for which payment.
    pub watches: Watches,
    /// The fee schedules.
    pub schedules: Schedules,
    /// The process's clock.
    pub clock: Arc<dyn Clock>,
    /// The PSP that charges.
    pub psp: Psp,
    /// Ends watches when the service stops.
    pub draining: CancellationToken,
}

impl Payments {
    /// The payment that a request asks for: every id chosen, every fee frozen.
    async fn draft(&self, merchant: &str, order: &request::Order) -> Result<Payment, Error> {
        let now = self.clock.now();
        let payment_id = PaymentId::new();
        let schedules = self.schedules.current(&self.store).await.map_err(florin::ops::read_failed)?;
        let orders = order.lines.iter().map(|line| Order {
            payment_order_id: PaymentOrderId::new(),
            payment_id,
            order_id: order.order_id.clone(),
            buyer_id: order.buyer_id.clone(),
            seller_id: line.seller_id.clone(),
            seller_reference: line.seller_reference.clone(),
            charge_id: ChargeId::new(),
            amount: line.amount,
            fee: fee::fee(&schedules, merchant, &line.seller_id, line.amount, now),
            state: OrderState::Pending,
            captured: 0,
            failure: None,
            attempt_count: 0,
            uncertain_since: None,
            next_psp_action_at: None,
            psp: String::new(),
            psp_account: String::new(),
            psp_reference: String::new(),
            charge_version: 0,
            created_at: now,
            updated_at: now,
            version: 1,
        });
        Ok(Payment {
            payment_id,
            merchant_id: merchant.to_owned(),
            order_id: order.order_id.clone(),
            buyer_id: order.buyer_id.clone(),
            total: order.total,
            payment_token: order.payment_token.clone(),
            psp_account: self.psp.account.clone(),
            description: order.description.clone(),
            metadata: order.metadata.clone(),
            state: PaymentState::Pending,
            traceparent: telemetry::current_traceparent(),
            created_at: now,
            updated_at: now,
            completed_at: None,
            version: 1,
            orders: orders.collect(),
        })
    }

    async fn load(&self, merchant: &str, id: PaymentId) -> Result<Payment, Error> {
        self.store.payment(merchant, id).await?.ok_or_else(|| payment_not_found(id))
    }

    /// Creates, or finds what the key made before; then waits as long as was asked.
    async fn create(&self, call: &Call, order: request::Order, key: String) -> Result<(Payment, bool), Error> {
        let payment = self.draft(&call.merchant, &order).await?;
        let new = NewPayment { payment: payment.clone(), key, fingerprint: order.fingerprint() };
        if order.validate_only {
            return match self.store.find_key(&new).await? {
                Some(before) => Ok((self.load(&call.merchant, before).await?, true)),
                None => Ok((payment, false)),
            };
        }
        let mut watch = self.watches.begin(payment.payment_id);
        let created = self.create.submit(new, call.deadline).await?;
        let (id, replayed) = match created {
            Created::New => (payment.payment_id, false),
            Created::Before(id) => {
                watch = self.watches.begin(id);
                (id, true)
            }
        };
        if order.wait.is_zero() {
            return if replayed { Ok((self.load(&call.merchant, id).await?, true)) } else { Ok((payment, false)) };
        }
        // Asked for an answer as it will be: at the end, or when the time is up, whichever comes first.
        let _ = tokio::time::timeout(order.wait, async {
            tokio::select! {
                () = watch.end() => {}
                () = self.draining.cancelled() => {}
            }
        })
        .await;
        Ok((self.load(&call.merchant, id).await?, replayed))
    }

    /// Sends a payment after each change that is seen, until it is final.
    async fn watch(
        self,
        merchant: String,
        first: Payment,
        sender: tokio::sync::mpsc::Sender<Result<proto::Payment, Status>>,
    ) {
        let mut watch = self.watches.begin(first.payment_id);
        let mut payment = first;
        loop {
            let (version, is_final) = (payment.version, payment.state.is_final());
            if sender.send(Ok(wire::payment(&payment))).await.is_err() || is_final {
                return;
            }
            tokio::select! {
                _ = watch.after(version) => {}
                () = sender.closed() => return,
                () = self.draining.cancelled() => {
                    let stopping = Error::new(Reason::ShuttingDown, "the service is stopping; watch again");
                    let _ = sender.send(Err(stopping.into())).await;
                    return;
                }
            }
            payment = match self.load(&merchant, payment.payment_id).await {
                Ok(payment) => payment,
                Err(error) => {
                    let _ = sender.send(Err(error.into())).await;
                    return;
                }
            };
        }
    }
}

#[tonic::async_trait]
impl PaymentService for Payments {
    async fn create_payment(
        &self,
        request: Request<proto::CreatePaymentRequest>,
    ) -> Result<Response<proto::Payment>, Status> {
        let call = Call::current()?;
        let (order, key) = request::check(request.into_inner(), call.idempotency_key(), &self.psp)?;
        let (payment, replayed) = Payments::create(self, &call, order, key).await?;
        let mut response = Response::new(wire::payment(&payment));
        if replayed {
            response.metadata_mut().insert(REPLAYED, MetadataValue::from_static("true"));
        }
        Ok(response)
    }

    async fn get_payment(
        &self,
        request: Request<proto::GetPaymentRequest>,
    ) -> Result<Response<proto::Payment>, Status> {
        let call = Call::current()?;
        let id = one(platform::id::<PaymentId>("payment_id", &request.into_inner().payment_id))?;
        Ok(Response::new(wire::payment(&self.load(&call.merchant, id).await?)))
    }

    async fn list_payments(
        &self,
        request: Request<proto::ListPaymentsRequest>,
    ) -> Result<Response<proto::ListPaymentsResponse>, Status> {
        let call = Call::current()?;
        let proto::ListPaymentsRequest {
            page_size,
            page_token,
            order_id,
            buyer_id,
            seller_id,
            states,
            create_time_from,
            create_time_to,
        } = request.into_inner();
        let mut violations = Violations::default();
        let filter = PaymentFilter {
            order_id: violations.take(platform::filter_caller_id("order_id", &order_id)).flatten(),
            buyer_id: violations.take(platform::filter_caller_id("buyer_id", &buyer_id)).flatten(),
            seller_id: violations.take(platform::filter_caller_id("seller_id", &seller_id)).flatten(),
            states: violations.take(wire::payment_states(&states)).unwrap_or_default(),
            from: violations.take(platform::filter_time("create_time_from", create_time_from.as_ref())).flatten(),
            to: violations.take(platform::filter_time("create_time_to", create_time_to.as_ref())).flatten(),
        };
        check_range(&mut violations, filter.from, filter.to);
        let query = Query::new("ListPayments", &call.merchant, &format!("{filter:?}"));
        let size = violations.take(page::size(page_size)).unwrap_or_default();
        let before = violations.take(query.position::<16>(&page_token)).flatten().map(Uuid::from_bytes);
        violations.finish()?;
        let mut payments = self.store.payments(&call.merchant, &filter, before, size + 1).await?;
        let next_page_token =
            page::cut(&mut payments, size, &query, |payment| payment.payment_id.uuid().as_bytes().to_vec());
        Ok(Response::new(proto::ListPaymentsResponse {
            payments: payments.iter().map(wire::payment).collect(),
            next_page_token,
        }))
    }

    type WatchPaymentStream = Pin<Box<dyn Stream<Item = Result<proto::Payment, Status>> + Send>>;

    async fn watch_payment(
        &self,
        request: Request<proto::WatchPaymentRequest>,
    ) -> Result<Response<Self::WatchPaymentStream>, Status> {
        let call = Call::current()?;
        let id = one(platform::id::<PaymentId>("payment_id", &request.into_inner().payment_id))?;
        let first = self.load(&call.merchant, id).await?;
        let (sender, receiver) = tokio::sync::mpsc::channel(2);
        tokio::spawn(self.clone().watch(call.merchant, first, sender));
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
    }

    async fn get_payment_order(
        &self,
        request: Request<proto::GetPaymentOrderRequest>,
    ) -> Result<Response<proto::PaymentOrder>, Status> {
        let call = Call::current()?;
        let id = one(platform::id::<PaymentOrderId>("payment_order_id", &request.into_inner().payment_order_id))?;
        let found = self.store.orders(&call.merchant, Some(id), &OrderFilter::default(), None, 1).await?;
        let order = found.first().ok_or_else(|| payment_order_not_found(id))?;
        Ok(Response::new(wire::order(order)))
    }

    async fn list_payment_orders(
        &self,
        request: Request<proto::ListPaymentOrdersRequest>,
    ) -> Result<Response<proto::ListPaymentOrdersResponse>, Status> {
        let call = Call::current()?;
        let proto::ListPaymentOrdersRequest {
            page_size,
            page_token,
            seller_id,
            states,
            create_time_from,
            create_time_to,
            outcome_uncertain,
        } = request.into_inner();
        let mut violations = Violations::default();
        let filter = OrderFilter {
            seller_id: violations.take(platform::filter_caller_id("seller_id", &seller_id)).flatten(),
            states: violations.take(wire::order_states(&states)).unwrap_or_default(),
            from: violations.take(platform::filter_time("create_time_from", create_time_from.as_ref())).flatten(),
            to: violations.take(platform::filter_time("create_time_to", create_time_to.as_ref())).flatten(),
            uncertain: outcome_uncertain,
        };
        check_range(&mut violations, filter.from, filter.to);
        let query = Query::new("ListPaymentOrders", &call.merchant, &format!("{filter:?}"));
        let size = violations.take(page::size(page_size)).unwrap_or_default();
        let before = violations.take(query.position::<16>(&page_token)).flatten().map(Uuid::from_bytes);
        violations.finish()?;
        let mut orders = self.store.orders(&call.merchant, None, &filter, before, size + 1).await?;
        let next_page_token =
            page::cut(&mut orders, size, &query, |order| order.payment_order_id.uuid().as_bytes().to_vec());
        Ok(Response::new(proto::ListPaymentOrdersResponse {
            payment_orders: orders.iter().map(wire::order).collect(),
            next_page_token,
        }))
    }
}

/// The value of a request's only field.
fn one<T>(result: Result<T, florin::error::Violation>) -> Result<T, Error> {
    result.map_err(|violation| Error::invalid(vec![violation]))
}

fn check_range<T: PartialOrd>(violations: &mut Violations, from: Option<T>, to: Option<T>) {
    if let (Some(from), Some(to)) = (from, to)
        && to < from
    {
        violations.add("create_time_to", Reason::TimeInvalid, "must not be before create_time_from");
    }
}

//! `florin.psp.v1.PspService`.

use florin::auth::Call;
use florin::error::Error;
use florin::id::PaymentOrderId;
use florin::proto::psp::v1 as proto;
use florin::proto::psp::v1::psp_service_server::PspService;
use tonic::{Request, Response, Status};

use crate::error::charge_not_found;
use crate::store::Store;
use crate::wire;

/// Answers how payment orders are charged.
#[derive(Debug, Clone)]
pub struct ChargeReads {
    /// The database.
    pub store: Store,
}

#[tonic::async_trait]
impl PspService for ChargeReads {
    async fn get_charge(&self, request: Request<proto::GetChargeRequest>) -> Result<Response<proto::Charge>, Status> {
        let call = Call::current()?;
        let id = florin::wire::id::<PaymentOrderId>("payment_order_id", &request.into_inner().payment_order_id);
        let id = id.map_err(|violation| Error::invalid(vec![violation]))?;
        let found = self.store.charge(&call.merchant, id).await?;
        let (charge, attempts, inquiries) = found.ok_or_else(|| charge_not_found(id))?;
        Ok(Response::new(wire::charge(&charge, &attempts, &inquiries)?))
    }
}

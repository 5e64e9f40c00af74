//! BPF filters on clsact hooks: how programs are attached on kernels without tcx. Attaching is done
//! and undone by [`crate::bpf`]; here is seen what there is.

use futures::TryStreamExt as _;
use rtnetlink::packet_route::tc::{TcAttribute, TcFilterBpfOption, TcHandle, TcMessage, TcOption};

use super::socket::{Netlink, NetlinkError, failed};

/// A hook of an interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// What comes in by it.
    Ingress,
    /// What goes out by it.
    Egress,
}

impl Side {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Ingress, Self::Egress];
}

/// A BPF filter.
#[derive(Clone, Debug)]
pub struct Filter {
    /// The program's name as it was given when the filter was made.
    pub name: String,
}

/// The BPF filters of a hook. An interface without clsact has none.
///
/// # Errors
///
/// When the kernel refuses.
pub async fn on(netlink: &Netlink, index: u32, side: Side) -> Result<Vec<Filter>, NetlinkError> {
    let all = all_on(netlink, index, side).await?;
    Ok(all.iter().filter_map(Filter::of).collect())
}

/// Removes the clsact discipline of an interface if there is one and no filter is on it any more.
/// Whether it was removed.
///
/// # Errors
///
/// When the kernel refuses.
pub async fn remove_empty_clsact(netlink: &Netlink, index: u32) -> Result<bool, NetlinkError> {
    let listed = netlink.handle().qdisc().get().execute();
    let listed: Vec<TcMessage> = listed
        .try_collect()
        .await
        .map_err(|error| failed("list the queueing disciplines", error))?;
    let is_clsact = |message: &TcMessage| {
        message.header.index == index.cast_signed()
            && message
                .attributes
                .contains(&TcAttribute::Kind("clsact".to_owned()))
    };
    if !listed.iter().any(is_clsact) {
        return Ok(false);
    }
    for side in Side::ALL {
        if !all_on(netlink, index, side).await?.is_empty() {
            return Ok(false);
        }
    }
    let mut qdiscs = netlink.handle().qdisc();
    let mut request = qdiscs.del(index.cast_signed());
    request.message_mut().header.parent = TcHandle::CLSACT;
    let result = request.execute().await;
    result.map_err(|error| failed("remove the clsact discipline", error))?;
    Ok(true)
}

async fn all_on(netlink: &Netlink, index: u32, side: Side) -> Result<Vec<TcMessage>, NetlinkError> {
    let mut filters = netlink.handle().traffic_filter(index.cast_signed());
    let request = filters.get();
    let request = match side {
        Side::Ingress => request.ingress(),
        Side::Egress => request.egress(),
    };
    let listed: Result<Vec<TcMessage>, _> = request.execute().try_collect().await;
    match listed.map_err(|error| failed("list the filters", error)) {
        // No clsact, or no such interface any more.
        Err(error) if error.is(libc::EINVAL) || error.is(libc::ENODEV) => Ok(Vec::new()),
        Err(error) => Err(error),
        // Each chain comes with a message of its priority alone.
        Ok(listed) => Ok(listed
            .into_iter()
            .filter(|message| {
                let mut attributes = message.attributes.iter();
                attributes.any(|attribute| matches!(attribute, TcAttribute::Options(_)))
            })
            .collect()),
    }
}

impl Filter {
    fn of(message: &TcMessage) -> Option<Self> {
        let options = message
            .attributes
            .iter()
            .find_map(|attribute| match attribute {
                TcAttribute::Options(options) => Some(options),
                _ => None,
            })?;
        let name = options.iter().find_map(|option| match option {
            TcOption::Bpf(TcFilterBpfOption::ProgName(name)) => Some(name.clone()),
            _ => None,
        })?;
        Some(Self { name })
    }
}

//! Userspace: the kernel may copy these types from and to maps.

use crate::{
    addr::{Addr4, Addr6},
    config::{Config, Uplink},
    drop::DropCount,
    endpoint::{Bandwidth, Bucket, Endpoint},
    flow::{Flow, FlowKey, Side, Tuple},
    ipcache::IpcacheEntry,
    policy::{PolicyKey, PolicyVerdict},
    service::{
        Affinity, AffinityKey, Backend, Frontend, FrontendKey, MaglevBlock, MaglevKey, Slot,
        SlotKey, SourceRange,
    },
    socket::{SocketKey, SocketPeer},
};

/// Types whose derives prove that they have no padding and no invalid bit patterns.
macro_rules! pod {
    ($($type:ty),+ $(,)?) => {
        $(
            // SAFETY: zerocopy's derives prove that the type has neither padding (`IntoBytes`) nor
            // invalid bit patterns (`FromBytes`), and it is `Copy + 'static`.
            unsafe impl aya::Pod for $type {}
        )+
        const _: () = {
            const fn plain<T: zerocopy::FromBytes + zerocopy::IntoBytes>() {}
            $(plain::<$type>();)+
        };
    };
}

/// Types that are generic over the address, for which zerocopy cannot derive `IntoBytes`: that they
/// have no padding is proven by the sum of their fields' sizes.
macro_rules! pod_of_family {
    ($($name:ident { $($fields:ty),+ $(,)? })+) => {
        $(
            // SAFETY: no padding (asserted below), no invalid bit patterns (`FromBytes`), and it is
            // `Copy + 'static`.
            unsafe impl aya::Pod for $name<Addr4> {}
            // SAFETY: as above.
            unsafe impl aya::Pod for $name<Addr6> {}
            const _: () = {
                const fn plain<T: zerocopy::FromBytes>() {}
                type A = Addr4;
                plain::<$name<A>>();
                assert!(size_of::<$name<A>>() == 0 $(+ size_of::<$fields>())+);
            };
            const _: () = {
                type A = Addr6;
                assert!(size_of::<$name<A>>() == 0 $(+ size_of::<$fields>())+);
            };
        )+
    };
}

pod!(
    Addr4,
    Addr6,
    Affinity,
    Bandwidth,
    Bucket,
    Config,
    DropCount,
    Endpoint,
    Frontend,
    IpcacheEntry,
    MaglevBlock,
    MaglevKey,
    PolicyKey,
    PolicyVerdict,
    Slot,
    SlotKey,
    Uplink,
);

pod_of_family! {
    AffinityKey { A, u32 }
    Backend { A, u32, u16, u16 }
    Flow { [Side; 2], u32, u32, u32, u32, u32, u32, Tuple<A>, u8, u8, u16 }
    FlowKey { A, A, u16, u16, u8, [u8; 3] }
    FrontendKey { A, u16, u8, u8 }
    SocketKey { [u32; 2], A, u16, u8, u8 }
    SocketPeer { A, u32, u32, u16, u16 }
    SourceRange { u32, A }
}

//! Bugs planted on purpose, so that the simulation can show that it would find them. Only with the feature `planted`,
//! which nothing that ships turns on, can one be chosen, at run time; without it every question here is answered "no"
//! when the program is compiled.

macro_rules! bugs {
    ($($(#[doc = $doc:literal])* $name:ident, $text:literal;)*) => {
        /// One planted bug.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
        pub enum Bug {
            $($(#[doc = $doc])* $name,)*
        }

        impl Bug {
            /// All of them.
            pub const ALL: &[Self] = &[$(Self::$name,)*];

            /// The name it is asked for by.
            #[must_use]
            pub fn name(self) -> &'static str {
                match self {
                    $(Self::$name => $text,)*
                }
            }
        }
    };
}

bugs! {
    /// A write counts as committed when the primary alone has it.
    AckBeforeReplicas, "ack-before-replicas";
    /// A replica acknowledges what it received, flushed or not.
    AckBeforeFlush, "ack-before-flush";
    /// While a proposal is under way only the old in-sync set counts.
    ForgetUnion, "forget-union";
    /// A proposal whose outcome is unknown counts as failed.
    UnknownIsFailed, "unknown-is-failed";
    /// Reads are answered without a lease.
    ReadWithoutLease, "read-without-lease";
    /// A lease counts from when the grant came, not from when it was asked for.
    LeaseFromReceipt, "lease-from-receipt";
    /// A grantor honours its grant for less long than the holder uses it.
    GrantShort, "grant-short";
    /// A new primary does not wait until earlier leases have run out.
    ServeBeforeLeasesEnd, "serve-before-leases-end";
    /// An OSD that starts forgets that it may have granted a lease just before.
    ForgetGrants, "forget-grants";
    /// A grant is used before the grantor's map is applied.
    GrantBeforeMap, "grant-before-map";
    /// A read does not wait for overlapping entries above the commit point.
    ReadAboveCommit, "read-above-commit";
    /// A new primary cuts inherited entries of a fenced generation, acknowledged or not.
    CutUncertain, "cut-uncertain";
    /// A new primary serves without asking anybody.
    ActivateAlone, "activate-alone";
    /// Replicas do not look at generations.
    NoFenceAtReplica, "no-fence-at-replica";
    /// Nobody looks at generations.
    NoFence, "no-fence";
    /// A request that comes again is executed again.
    ExecuteTwice, "execute-twice";
    /// The dup table is not sent to a member that is brought back.
    LoseDups, "lose-dups";
    /// Replies are forgotten with the log entries.
    TrimDups, "trim-dups";
    /// A push lands on blocks that were written since.
    PushOverWrites, "push-over-writes";
    /// A member joins before its missing blocks have come.
    JoinEarly, "join-early";
    /// What was open when a member left is not dirty for it.
    ForgetOpenEntries, "forget-open-entries";
    /// What was cut off the log is not dirty for whoever may still have it.
    ForgetCutEntries, "forget-cut-entries";
    /// The dirty map is not kept when the log forgets entries.
    TrimDirty, "trim-dirty";
    /// A slow replica is waited for no more, without leave of the metadata service.
    DropWithoutCas, "drop-without-cas";
    /// Entries under an older configuration are acknowledged, though they are not taken.
    AckOldConfiguration, "ack-old-configuration";
    /// A member that comes back keeps the end of its log, though it diverged.
    KeepDivergedEnd, "keep-diverged-end";
    /// A fill from nothing writes over what was written ahead of it.
    FillOverWrites, "fill-over-writes";
    /// Fewer copies than `min_size` are enough when the others are down.
    IgnoreMinSize, "ignore-min-size";
    /// What is committed while too few members are in sync is acknowledged.
    AckOnTooFew, "ack-on-too-few";
    /// A block that cannot be read is answered as zeros.
    ServeZeros, "serve-zeros";
    /// Zeros and discards are not dirty for whoever is absent.
    ForgetZeros, "forget-zeros";
    /// A push is taken though an earlier one has not come.
    PushGap, "push-gap";
    /// A PG splits though not everything in its log is committed.
    SplitUncommitted, "split-uncommitted";
    /// A primary goes on ordering while its PG splits.
    SplitWhileOrdering, "split-while-ordering";
    /// A member that lacks some of the log splits what it has.
    SplitStale, "split-stale";
    /// The half of a PG does not know which requests were executed.
    SplitWithoutDups, "split-without-dups";
    /// A write goes below a going snapshot's layer before that is joined.
    HiddenLayer, "hidden-layer";
    /// A discard makes a block absent although an older layer knows it.
    DiscardUncovers, "discard-uncovers";
    /// A view is read from its uppermost layer only.
    ShallowView, "shallow-view";
    /// The layer that goes is removed before its content is below.
    JoinForgets, "join-forgets";
    /// What was written directly after a snapshot does not count as changed since.
    SinceSkips, "since-skips";
}

#[cfg(feature = "planted")]
static CHOSEN: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(u32::MAX);

/// Chooses the bug of this process, or none.
#[cfg(feature = "planted")]
pub fn plant(bug: Option<Bug>) {
    CHOSEN.store(bug.map_or(u32::MAX, |bug| bug as u32), std::sync::atomic::Ordering::Relaxed);
}

#[cfg(feature = "planted")]
pub(crate) fn planted(bug: Bug) -> bool {
    CHOSEN.load(std::sync::atomic::Ordering::Relaxed) == bug as u32
}

#[cfg(not(feature = "planted"))]
pub(crate) const fn planted(_: Bug) -> bool {
    false
}

//! Exceptions from the hash, for balance: PGs are few, so chance alone spreads them unevenly (with 64 on each OSD, by a
//! tenth and more), and the fullest OSD decides how much a cluster can hold.
//!
//! An exception says that of one PG one OSD stands in for another. It never puts two copies into one failure domain and
//! never names an OSD that the pool may not use: [`Placer::amend`] passes over one that would, so that an exception that
//! the map has outgrown does nothing. [`Placer::balance`] takes one PG at a time from the OSD that has most above its share
//! to the one that has most below it, in an order that depends on nothing but the map, and stops after as many steps as it
//! was allowed.

use std::collections::BTreeMap;

use cairn_types::OsdId;

use crate::Placer;

/// Of one PG, one OSD stands in for another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Exception {
    /// Where the copy would lie.
    pub from: OsdId,
    /// Where it lies.
    pub to: OsdId,
}

/// The exceptions of one pool, by PG.
pub type Exceptions = BTreeMap<u32, Vec<Exception>>;

/// One copy of one PG, as shares are counted.
const COPY: i64 = 1 << 16;
/// An OSD may be off its share by this part, or by one copy.
const TOLERANCE: i64 = 20;
/// Pairs of OSDs looked at for one step.
const PAIRS: usize = 256;

/// How far OSDs are from their share of PG copies.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Spread {
    /// The largest deviation, in thousandths of the OSD's share.
    pub permille: u32,
    /// Some OSD is off by more than a twentieth of its share and by more than one copy.
    pub uneven: bool,
}

impl Placer {
    /// Applies a PG's exceptions to what the hash says. Gives the ones that had an effect.
    pub fn amend(&self, placed: &mut [OsdId], exceptions: &[Exception]) -> Vec<Exception> {
        let mut applied = Vec::new();
        for exception in exceptions {
            let Some(spot) = placed.iter().position(|osd| *osd == exception.from) else { continue };
            if self.fits(placed, spot, exception.to) {
                placed[spot] = exception.to;
                applied.push(*exception);
            }
        }
        applied
    }

    /// Whether an OSD may take the place of a PG's member without two copies coming into one domain.
    fn fits(&self, placed: &[OsdId], spot: usize, to: OsdId) -> bool {
        let Some(domain) = self.domain_of.get(&to) else { return false };
        let mut others = placed.iter().enumerate().filter(|(at, _)| *at != spot);
        placed[spot] != to && others.all(|(_, osd)| self.domain_of.get(osd) != Some(domain))
    }

    /// Copies that each OSD should carry, in 1/65536.
    fn shares(&self, pg_count: u32) -> BTreeMap<OsdId, i64> {
        let weights: Vec<u64> = self.domains.iter().map(|(domain, _)| domain.weight()).collect();
        let mut shares = BTreeMap::new();
        for ((domain, _), part) in self.domains.iter().zip(crate::fixed::shares(&weights, self.size)) {
            let mut osds = Vec::new();
            domain.osds(&mut osds);
            for (osd, weight) in osds {
                let share = u128::from(part) * u128::from(pg_count) * u128::from(weight);
                shares.insert(osd, ((share / u128::from(domain.weight().max(1))) >> 16) as i64);
            }
        }
        shares
    }

    /// Where every PG lies, exceptions applied.
    fn all_placed(&self, pg_count: u32, exceptions: &Exceptions) -> Vec<Vec<OsdId>> {
        let one = |index| {
            let mut placed = self.place_what_fits(index);
            self.amend(&mut placed, exceptions.get(&index).map_or(&[], Vec::as_slice));
            placed
        };
        (0..pg_count).map(one).collect()
    }

    /// How even the PGs lie.
    #[must_use]
    pub fn spread(&self, pg_count: u32, exceptions: &Exceptions) -> Spread {
        let scale = Scale::new(self.shares(pg_count), &self.all_placed(pg_count, exceptions));
        let permille = scale.shares.iter().filter(|(_, share)| **share > 0);
        let permille = permille.map(|(osd, share)| (scale.off[osd].abs().saturating_mul(1000) / share) as u32);
        Spread { permille: permille.max().unwrap_or(0), uneven: scale.off.keys().any(|osd| scale.is_off(*osd)) }
    }

    /// The exceptions after at most `most` more steps towards balance: each moves one copy of one PG. What is given are
    /// those of all PGs that have any.
    #[must_use]
    pub fn balance(&self, pg_count: u32, exceptions: &Exceptions, most: usize) -> Exceptions {
        let mut all = Exceptions::new();
        let mut placed = Vec::with_capacity(pg_count as usize);
        for index in 0..pg_count {
            let mut members = self.place_what_fits(index);
            let given = exceptions.get(&index).map_or(&[][..], Vec::as_slice);
            all.insert(index, self.amend(&mut members, given));
            placed.push(members);
        }
        let mut scale = Scale::new(self.shares(pg_count), &placed);
        for _ in 0..most {
            let Some((index, spot, to)) = self.next_step(&placed, &scale) else { break };
            let from = std::mem::replace(&mut placed[index][spot], to);
            scale.shift(from, to);
            let of_pg = all.entry(index as u32).or_default();
            match of_pg.iter().position(|exception| exception.to == from) {
                // Back where the hash wants it, or on to a third place: one exception at most for each copy.
                Some(at) if of_pg[at].from == to => drop(of_pg.remove(at)),
                Some(at) => of_pg[at].to = to,
                None => of_pg.push(Exception { from, to }),
            }
        }
        all.retain(|_, of_pg| !of_pg.is_empty());
        all
    }

    /// A copy that lies where there are too many and may lie where there are too few: PG, place in its list, and where to.
    fn next_step(&self, placed: &[Vec<OsdId>], scale: &Scale) -> Option<(usize, usize, OsdId)> {
        let mut rising: Vec<OsdId> = scale.off.keys().copied().collect();
        rising.sort_by_key(|osd| scale.off[osd]);
        let pairs = rising.iter().rev().flat_map(|over| rising.iter().map(move |under| (*over, *under)));
        let worth = |(over, under): &(OsdId, OsdId)| {
            scale.off[over] - scale.off[under] > COPY && (scale.is_off(*over) || scale.is_off(*under))
        };
        for (over, under) in pairs.filter(worth).take(PAIRS) {
            let found = placed.iter().enumerate().find_map(|(index, members)| {
                let spot = members.iter().position(|osd| *osd == over)?;
                let free = !members.contains(&under) && self.fits(members, spot, under);
                free.then_some((index, spot, under))
            });
            if found.is_some() {
                return found;
            }
        }
        None
    }
}

/// How far each OSD is off its share.
struct Scale {
    shares: BTreeMap<OsdId, i64>,
    off: BTreeMap<OsdId, i64>,
}

impl Scale {
    fn new(shares: BTreeMap<OsdId, i64>, placed: &[Vec<OsdId>]) -> Self {
        let mut off: BTreeMap<OsdId, i64> = shares.iter().map(|(osd, share)| (*osd, -share)).collect();
        for osd in placed.iter().flatten() {
            *off.entry(*osd).or_default() += COPY;
        }
        Self { shares, off }
    }

    fn is_off(&self, osd: OsdId) -> bool {
        let share = self.shares.get(&osd).copied().unwrap_or(0);
        self.off.get(&osd).is_some_and(|off| off.abs() > (share / TOLERANCE).max(COPY - 1))
    }

    fn shift(&mut self, from: OsdId, to: OsdId) {
        *self.off.entry(from).or_default() -= COPY;
        *self.off.entry(to).or_default() += COPY;
    }
}

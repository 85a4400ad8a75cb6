//! straw2 placement over failure domains: a pure function of the map.

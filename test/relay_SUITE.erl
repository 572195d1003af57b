%%% The relay of the fault campaigns: whoever blames the pool for a loss must know that the line
%%% does what it was told, and nothing else. Plain UDP, packets in numbers.
-module(relay_SUITE).

-include_lib("stdlib/include/assert.hrl").

-export([all/0, suite/0]).
-export([
    without_faults_every_packet_passes_unchanged_and_in_order/1,
    loss_strikes_the_way_that_it_is_set_for/1,
    duplicates_come_and_are_counted/1,
    held_back_packets_are_overtaken/1,
    packets_are_late_by_the_delay/1,
    packets_beyond_the_mtu_are_dropped/1,
    a_corruption_changes_one_byte/1,
    a_rebinding_changes_the_port_that_the_server_sees/1,
    a_blackout_on_a_schedule_begins_and_ends/1,
    the_seed_decides_which_packets_are_struck/1,
    a_server_that_goes_and_comes_back_is_reached_again/1
]).

-define(PACKETS, 500).

suite() -> [{timetrap, {minutes, 1}}].

all() ->
    [
        without_faults_every_packet_passes_unchanged_and_in_order,
        loss_strikes_the_way_that_it_is_set_for,
        duplicates_come_and_are_counted,
        held_back_packets_are_overtaken,
        packets_are_late_by_the_delay,
        packets_beyond_the_mtu_are_dropped,
        a_corruption_changes_one_byte,
        a_rebinding_changes_the_port_that_the_server_sees,
        a_blackout_on_a_schedule_begins_and_ends,
        the_seed_decides_which_packets_are_struck,
        a_server_that_goes_and_comes_back_is_reached_again
    ].

without_faults_every_packet_passes_unchanged_and_in_order(_Config) ->
    %% Faults that nobody asked for would be blamed on the pool.
    with_relay(1, fun(Relay, Client, Server) ->
        {Up, Port} = through(Relay, Client, Server, ?PACKETS),
        ?assertEqual(lists:seq(1, ?PACKETS), Up),
        ?assertEqual(lists:seq(1, ?PACKETS), back(Client, Server, Port, ?PACKETS)),
        #{up := Ways, down := Ways} = mesh_relay:settled(Relay),
        ?assertMatch(
            #{received := ?PACKETS, sent := ?PACKETS, lost := 0, unsent := 0, overflowed := 0}, Ways
        )
    end).

loss_strikes_the_way_that_it_is_set_for(_Config) ->
    %% Requests lost and answers lost are different faults.
    with_relay(2, fun(Relay, Client, Server) ->
        mesh_relay:set(Relay, up, #{loss => 500}),
        {Up, Port} = through(Relay, Client, Server, ?PACKETS),
        ?assert(length(Up) > ?PACKETS div 3),
        ?assert(length(Up) < ?PACKETS div 3 * 2),
        ?assertEqual(lists:seq(1, ?PACKETS), back(Client, Server, Port, ?PACKETS)),
        Lost = ?PACKETS - length(Up),
        ?assertMatch(#{up := #{lost := Lost}, down := #{lost := 0}}, mesh_relay:settled(Relay))
    end).

duplicates_come_and_are_counted(_Config) ->
    with_relay(3, fun(Relay, Client, Server) ->
        mesh_relay:set(Relay, both, #{duplicate => 1_000}),
        {Up, _Port} = through(Relay, Client, Server, ?PACKETS),
        ?assertEqual(lists:seq(1, ?PACKETS), lists:usort(Up)),
        ?assertEqual(2 * ?PACKETS, length(Up)),
        ?assertMatch(
            #{up := #{duplicated := ?PACKETS, sent := 2 * ?PACKETS}}, mesh_relay:settled(Relay)
        )
    end).

held_back_packets_are_overtaken(_Config) ->
    with_relay(4, fun(Relay, Client, Server) ->
        mesh_relay:set(Relay, up, #{reorder => 200}),
        {Up, _Port} = through(Relay, Client, Server, ?PACKETS),
        ?assertEqual(lists:seq(1, ?PACKETS), lists:sort(Up)),
        ?assertNotEqual(lists:seq(1, ?PACKETS), Up),
        #{up := #{reordered := Reordered}} = mesh_relay:settled(Relay),
        ?assert(Reordered > 0)
    end).

packets_are_late_by_the_delay(_Config) ->
    %% Never early; how much later than that is the machine's business.
    with_relay(5, fun(Relay, Client, Server) ->
        mesh_relay:set(Relay, up, #{delay => 200, jitter => 50}),
        Start = erlang:monotonic_time(millisecond),
        {Up, _Port} = through(Relay, Client, Server, ?PACKETS),
        ?assert(erlang:monotonic_time(millisecond) - Start >= 200),
        ?assertEqual(lists:seq(1, ?PACKETS), lists:sort(Up))
    end).

packets_beyond_the_mtu_are_dropped(_Config) ->
    with_relay(6, fun(Relay, Client, Server) ->
        mesh_relay:set(Relay, up, #{mtu => 1_252}),
        ok = send(Client, mesh_relay:address(Relay), <<1:32, 0:(1_249 * 8)>>),
        ok = send(Client, mesh_relay:address(Relay), <<2:32, 0:(1_248 * 8)>>),
        {<<2:32, _/binary>>, _Port} = take(Server),
        ?assertMatch(#{up := #{too_long := 1, sent := 1}}, mesh_relay:settled(Relay))
    end).

a_corruption_changes_one_byte(_Config) ->
    with_relay(7, fun(Relay, Client, Server) ->
        mesh_relay:set(Relay, up, #{corrupt => 1_000}),
        Sent = binary:copy(<<"intact">>, 200),
        ok = send(Client, mesh_relay:address(Relay), Sent),
        {Got, _Port} = take(Server),
        Pairs = lists:zip(binary_to_list(Sent), binary_to_list(Got)),
        ?assertEqual(1, length([different || {One, Other} <- Pairs, One =/= Other])),
        ?assertMatch(#{up := #{corrupted := 1}}, mesh_relay:settled(Relay))
    end).

a_rebinding_changes_the_port_that_the_server_sees(_Config) ->
    %% What a NAT does that has forgotten its client; the former way back is dead.
    with_relay(8, fun(Relay, Client, Server) ->
        {_, Former} = through(Relay, Client, Server, 1),
        ?assertEqual(1, mesh_relay:rebind(Relay)),
        {_, Present} = through(Relay, Client, Server, 1),
        ?assertNotEqual(Former, Present),
        ok = send(Server, {{127, 0, 0, 1}, Former}, <<"to nobody">>),
        ?assertEqual([1, 2, 3], back(Client, Server, Present, 3)),
        ?assertMatch(#{rebinds := 1, down := #{received := 3}}, mesh_relay:settled(Relay))
    end).

a_blackout_on_a_schedule_begins_and_ends(_Config) ->
    with_relay(9, fun(Relay, Client, Server) ->
        mesh_relay:later(Relay, 0, {set, both, #{blackout => true}}),
        Received = fun() ->
            ok = send(Client, mesh_relay:address(Relay), <<1:32>>),
            #{up := #{blacked_out := Dark, sent := Sent}} = mesh_relay:stats(Relay),
            {Dark > 0, Sent > 0}
        end,
        mesh_wait:eventually({true, false}, fun() ->
            {Dark, _} = Received(),
            #{up := #{sent := Before}} = mesh_relay:settled(Relay),
            ok = send(Client, mesh_relay:address(Relay), <<1:32>>),
            #{up := #{sent := After}} = mesh_relay:settled(Relay),
            {Dark, After > Before}
        end),
        mesh_relay:later(Relay, 50, clear),
        mesh_wait:eventually({true, true}, Received),
        {_, _} = take(Server)
    end).

the_seed_decides_which_packets_are_struck(_Config) ->
    %% A campaign that found something must find it again.
    Run = fun(Seed) ->
        with_relay(Seed, fun(Relay, Client, Server) ->
            mesh_relay:set(Relay, up, #{loss => 300}),
            {Up, _Port} = through(Relay, Client, Server, ?PACKETS),
            Up
        end)
    end,
    First = Run(10),
    ?assertEqual(First, Run(10)),
    ?assertNotEqual(First, Run(11)).

a_server_that_goes_and_comes_back_is_reached_again(_Config) ->
    %% The kernel tells a sender that nobody listens any more, which must not stop the relay.
    with_relay(12, fun(Relay, Client, Server) ->
        {ok, Port} = inet:port(Server),
        {_, _} = through(Relay, Client, Server, 1),
        ok = gen_udp:close(Server),
        ok = pass(Relay, Client, 20),
        Back = open(Port),
        {[1, 2, 3], _} = through(Relay, Client, Back, 3)
    end).

%%% Internal

with_relay(Seed, Test) ->
    Server = open(0),
    Client = open(0),
    {ok, Port} = inet:port(Server),
    Relay = mesh_relay:start(Port, Seed),
    try
        Test(Relay, Client, Server)
    after
        mesh_relay:stop(Relay),
        _ = gen_udp:close(Client),
        _ = gen_udp:close(Server)
    end.

open(Port) ->
    Options = [binary, {ip, {127, 0, 0, 1}}, {active, false}, {recbuf, 1_048_576}],
    {ok, Socket} = gen_udp:open(Port, Options),
    Socket.

send(Socket, {Ip, Port}, Data) -> gen_udp:send(Socket, Ip, Port, Data).

take(Socket) ->
    {ok, {_, Port, Data}} = gen_udp:recv(Socket, 0, 10_000),
    {Data, Port}.

%% Sends numbers to the server; those that come, in their order, and the port that they come from.
through(Relay, Client, Server, Count) ->
    ok = pass(Relay, Client, Count),
    drain(Server, []).

%% Sends numbers, and waits until the relay has done with them what it does.
pass(Relay, Client, Count) ->
    #{up := #{received := Before}} = mesh_relay:stats(Relay),
    [ok = send(Client, mesh_relay:address(Relay), <<N:32>>) || N <- lists:seq(1, Count)],
    mesh_wait:eventually(Before + Count, fun() ->
        #{up := #{received := Received}} = mesh_relay:stats(Relay),
        Received
    end),
    _ = mesh_relay:settled(Relay),
    ok.

back(Client, Server, Port, Count) ->
    [ok = send(Server, {{127, 0, 0, 1}, Port}, <<N:32>>) || N <- lists:seq(1, Count)],
    [binary:decode_unsigned(element(1, take(Client))) || _ <- lists:seq(1, Count)].

%% All that is there: the relay has sent everything by now, on this machine.
drain(Socket, Taken) ->
    case gen_udp:recv(Socket, 0, 50) of
        {ok, {_, Port, <<N:32>>}} -> drain(Socket, [{N, Port} | Taken]);
        {error, timeout} -> {[N || {N, _} <- lists:reverse(Taken)], element(2, hd(Taken))}
    end.

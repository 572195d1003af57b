%%% What callers hear of dials that fail: each way of failing has its own reason, none outlasts its
%%% time, and no more dials are under way, or wait, than the pool was told.
-module(dial_SUITE).

-include_lib("stdlib/include/assert.hrl").

-compile([export_all, nowarn_export_all]).

-define(POOL, macula_gateway_mesh).
%% A dial to somebody who never answers, when its failure is what a test waits for.
-define(SHORT_MS, 150).
%% A dial that is still under way when the test has ended.
-define(LONG_MS, 60_000).
%% ALPN: no_application_protocol (RFC 7301, section 3.2).
-define(NO_APPLICATION_PROTOCOL, 120).

suite() ->
    [{timetrap, {seconds, 90}}].

all() ->
    [
        a_silent_peer_is_given_up_after_5_seconds,
        a_silent_peer_is_given_up_after_the_time_of_the_option,
        a_port_that_nobody_listens_at_is_refused,
        a_peer_that_refuses_is_told_as_such,
        a_peer_with_another_protocol_is_told_by_its_alert,
        a_host_whose_name_is_no_server_name_is_reached,
        an_address_that_is_no_destination_is_a_socket_error,
        a_removed_dial_is_told_as_such,
        a_dial_of_a_stopping_pool_is_told_as_such,
        too_many_dials_are_refused,
        only_so_many_dials_are_under_way_at_once,
        a_caller_of_a_very_slow_dial_exits_after_10_seconds
    ].

init_per_testcase(_Case, Config) ->
    ok = mesh_ct:begin_test(),
    Config.

end_per_testcase(_Case, _Config) ->
    mesh_ct:end_test(),
    ok.

a_silent_peer_is_given_up_after_5_seconds(_Config) ->
    % Callers wait 10: they must hear of it before they give up themselves.
    Pool = mesh_ct:start_pool(),
    Start = erlang:monotonic_time(millisecond),
    ?assertEqual(
        {error, {connect_failed, timeout}},
        ?POOL:get_or_create_connection(Pool, <<"silent">>, mesh_peer:silent())
    ),
    ?assert(erlang:monotonic_time(millisecond) - Start >= 5_000),
    ?assertEqual(#{timeout => 1}, mesh_ct:stat(dial_failures)).

a_silent_peer_is_given_up_after_the_time_of_the_option(_Config) ->
    % Operators of fast networks want to know sooner.
    ?assertEqual({error, {connect_failed, timeout}}, failure(mesh_peer:silent())),
    ?assertEqual({0, 0}, {mesh_ct:stat(dialing), mesh_ct:stat(size)}).

a_port_that_nobody_listens_at_is_refused(_Config) ->
    % As by the original, whose sockets are connected.
    Loopback = {127, 0, 0, 1},
    Address = {Loopback, mesh_ct:closed_port(Loopback)},
    ?assertEqual({error, {connect_failed, refused}}, failure(Address, 5_000)).

a_peer_that_refuses_is_told_as_such(_Config) ->
    % It lives, so trying again later makes sense.
    Peer = mesh_ct:start_peer(["--mode", "refuse"]),
    ?assertEqual({error, {connect_failed, refused}}, failure(Peer, 5_000)),
    mesh_peer:wait(Peer, handshakes_refused, 1),
    ?assertEqual(#{refused => 1}, mesh_ct:stat(dial_failures)).

a_peer_with_another_protocol_is_told_by_its_alert(_Config) ->
    % Whoever answers there is no node of the mesh. All that is offered is ALPN `macula'.
    Peer = mesh_ct:start_peer(["--alpn", "other"]),
    Alert = {tls_alert, ?NO_APPLICATION_PROTOCOL},
    ?assertEqual({error, {connect_failed, Alert}}, failure(Peer, 5_000)),
    ?assertEqual(#{tls_alert => 1}, mesh_ct:stat(dial_failures)).

a_host_whose_name_is_no_server_name_is_reached(_Config) ->
    % A container's name may be all digits, or end in a number: no such name is a server name for
    % TLS. The resolver takes `127.1' for 127.0.0.1.
    Port = mesh_peer:port(mesh_ct:start_peer()),
    Pool = mesh_ct:start_pool(),
    ?assertMatch({ok, _}, ?POOL:get_or_create_connection(Pool, <<"node">>, {"127.1", Port})).

an_address_that_is_no_destination_is_a_socket_error(_Config) ->
    % Nodes that listen at all addresses tell others so.
    Error = {error, {connect_failed, {socket_error, eaddrnotavail}}},
    ?assertEqual(Error, failure({<<"::">>, 4433}, 5_000)).

a_removed_dial_is_told_as_such(_Config) ->
    % Who waits for a node that was removed must not wait for nothing.
    Pool = mesh_ct:start_pool(#{connect_timeout_ms => ?LONG_MS}),
    Silent = mesh_peer:silent(),
    Callers = [waiting_caller(Pool, <<"node">>, Silent) || _ <- lists:seq(1, 3)],
    ok = ?POOL:remove_connection(Pool, <<"node">>),
    [
        ?assertEqual({error, {connect_failed, removed}}, mesh_ct:await(Caller))
     || Caller <- Callers
    ],
    ?assertEqual(0, mesh_ct:stat(dialing)).

a_dial_of_a_stopping_pool_is_told_as_such(_Config) ->
    % The caller's own shutdown must not wait for the dial's deadline.
    Pool = mesh_ct:start_pool(#{connect_timeout_ms => ?LONG_MS}),
    Caller = waiting_caller(Pool, <<"node">>, mesh_peer:silent()),
    ok = ?POOL:stop(Pool),
    ?assertEqual({error, {connect_failed, pool_closed}}, mesh_ct:await(Caller)).

too_many_dials_are_refused(_Config) ->
    % A thousand dead peers must not take the memory that the living ones need.
    Pool = mesh_ct:start_pool(#{connect_timeout_ms => ?LONG_MS, max_pending_dials => 1}),
    Silent = mesh_peer:silent(),
    ok = ?POOL:send_async(Pool, <<"first">>, Silent, <<"m">>),
    ?assertEqual(
        {error, {connect_failed, too_many_dials}},
        ?POOL:get_or_create_connection(Pool, <<"second">>, Silent)
    ),
    ok = ?POOL:send_async(Pool, <<"second">>, Silent, <<"m">>),
    ?assertEqual(#{too_many_dials => 1}, mesh_ct:stat(messages_dropped)).

only_so_many_dials_are_under_way_at_once(_Config) ->
    % A node that comes back to a mesh that has gone must not flood the network with its dials.
    Peer = mesh_ct:start_peer(),
    Pool = mesh_ct:start_pool(#{connect_timeout_ms => ?LONG_MS, max_concurrent_dials => 1}),
    {ok, Socket} = gen_udp:open(0, [binary, {ip, {127, 0, 0, 1}}, {active, true}]),
    {ok, Port} = inet:port(Socket),
    ok = ?POOL:send_async(Pool, <<"silent">>, {{127, 0, 0, 1}, Port}, <<"m">>),
    receive
        {udp, Socket, _, _, _FirstPacket} -> ok
    end,
    Second = mesh_ct:start_task(fun() -> mesh_ct:connect(Pool, Peer) end),
    mesh_wait:eventually(2, fun() -> mesh_ct:stat(dialing) end),
    % Nothing is to happen, so somebody else's whole dial, begun after it, says when it would have.
    {ok, Whole} = macula_quic:connect({127, 0, 0, 1}, mesh_peer:port(Peer), [], 10_000),
    ?assertMatch(#{connections_opened := 1}, mesh_peer:wait(Peer, connections_opened, 1)),
    ?assertEqual({2, 0}, {mesh_ct:stat(dialing), mesh_ct:stat(size)}),
    ok = macula_quic:close(Whole),
    ok = ?POOL:remove_connection(Pool, <<"silent">>),
    ?assert(is_reference(mesh_ct:await(Second))).

a_caller_of_a_very_slow_dial_exits_after_10_seconds(_Config) ->
    % Callers of nodes catch this exit; the pool itself must not notice.
    Pool = mesh_ct:start_pool(#{connect_timeout_ms => ?LONG_MS}),
    Silent = mesh_peer:silent(),
    Call = {get_or_create_connection, <<"node">>, Silent},
    ?assertExit(
        {timeout, {gen_server, call, [Pool, Call, 10_000]}},
        ?POOL:get_or_create_connection(Pool, <<"node">>, Silent)
    ),
    ok = ?POOL:remove_connection(Pool, <<"node">>),
    mesh_wait:eventually(0, fun() -> mesh_ct:stat(tasks) end),
    % The late answer has been posted by now, and this call comes after it.
    ?assertEqual(0, ?POOL:pool_size(Pool)),
    ?assertEqual([], mesh_ct:flush()).

%%% What the tests share

%% What a dial to an address, or to a peer, ends with.
failure(Address) -> failure(Address, ?SHORT_MS).

failure(Peer, Ms) when is_map(Peer) ->
    failure(mesh_peer:address(Peer), Ms);
failure(Address, Ms) ->
    Pool = mesh_ct:start_pool(#{connect_timeout_ms => Ms}),
    ?POOL:get_or_create_connection(Pool, <<"node">>, Address).

%% A task that waits for a dial, which has begun.
waiting_caller(Pool, Id, Address) ->
    Misses = mesh_ct:stat(misses),
    Caller = mesh_ct:start_task(fun() -> ?POOL:get_or_create_connection(Pool, Id, Address) end),
    mesh_wait:eventually(true, fun() -> mesh_ct:stat(misses) > Misses end),
    Caller.
